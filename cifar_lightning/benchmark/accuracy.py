"""Accuracy of runs under variants: each evaluated once, and never again without need."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from cifar_lightning.benchmark.candidates import Source
from cifar_lightning.benchmark.contention import device_lock
from cifar_lightning.benchmark.evaluate import evaluate
from cifar_lightning.benchmark.load import RunData
from cifar_lightning.errors import Interrupted, reason_of
from cifar_lightning.runs.find import load_run
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.system.devices import check_usable
from cifar_lightning.variants import registry
from cifar_lightning.variants.context import Unsupported, VariantContext

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Accuracy:
    """What a run's network gets right under a variant; see `Measurement`."""

    test_acc: float
    confusion: list[list[int]]


class Accuracies:
    """What is known of the accuracy of runs under variants.

    Args:
        data: Gives the test splits, and images to calibrate with.
        device: Where networks are evaluated.
    """

    def __init__(self, data: RunData, device: torch.device) -> None:
        self._data, self._device = data, device
        self._found: dict[tuple[Path, str], Accuracy | str] = {}

    def look(self, source: Source, prepared: VariantContext) -> None:
        """Evaluate a network that is ready, if its accuracy is not known yet."""
        if source.folder is None or self.known(source) is not None:
            return
        data = self._data(source.folder)
        try:
            predictions = evaluate(prepared.forward, data, self._device)
        except Interrupted:
            raise
        except Exception as error:
            self._fail(source, error)
            return
        predictions.save(source.folder, source.candidate.variant)
        found = Accuracy(predictions.accuracy, predictions.confusion(data.num_classes))
        self._found[source.folder, source.candidate.variant] = found

    def of(self, source: Source) -> Accuracy | str:
        """Tell a run's accuracy, or why there is none; it is evaluated if it has to be.

        Raises:
            Interrupted: If a signal came meanwhile.
            DeviceLost: If the device is of no use any more.
        """
        assert source.folder is not None
        if (known := self.known(source)) is not None:
            return known
        log.info("evaluating %s, %s", source.candidate.label, source.candidate.variant)
        try:
            with (
                device_lock(self._device),
                torch.inference_mode(mode=False),
                registry.prepare(
                    source.candidate.variant,
                    source.build(),
                    self._device,
                    lambda: self._data.calibration(source.folder),
                ) as prepared,
                prepared.switched(),
                torch.inference_mode(),
            ):
                self.look(source, prepared)
        except Interrupted:
            raise
        except Exception as error:
            self._fail(source, error)
        return self._found[source.folder, source.candidate.variant]

    def known(self, source: Source) -> Accuracy | str | None:
        """Tell what is known already, from an earlier measurement of the same execution, too."""
        assert source.folder is not None
        key = source.folder, source.candidate.variant
        if key not in self._found and (lent := _lent(source)) is not None:
            self._found[key] = lent
        return self._found.get(key)

    def _fail(self, source: Source, error: Exception) -> None:
        assert source.folder is not None
        text = str(error) if isinstance(error, Unsupported) else reason_of(error)
        log.debug("%s failed", source.candidate.variant, exc_info=error)
        check_usable(self._device, error)
        self._found[source.folder, source.candidate.variant] = text


def _lent(source: Source) -> Accuracy | None:
    """Take the accuracy from a measurement of the same weights, made and executed in this way."""
    assert source.folder is not None
    candidate = source.candidate
    if not RunFolder(source.folder).prediction(candidate.variant).exists():
        return None
    measurements, _ = Measurement.read_all(source.folder, load_run(source.folder))
    for one in measurements:
        same = (one.weights, one.recipe, one.engines) == (
            candidate.weights,
            candidate.recipe,
            candidate.engines,
        )
        if same and one.test_acc is not None and one.confusion is not None:
            return Accuracy(one.test_acc, one.confusion)
    return None
