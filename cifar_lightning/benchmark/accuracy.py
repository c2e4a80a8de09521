"""Accuracy of runs under variants: each evaluated once, and never again without need.

Where a run's data or weights are not here, what was evaluated elsewhere is carried over.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cifar_lightning.benchmark.candidates import Source
from cifar_lightning.benchmark.contention import device_lock
from cifar_lightning.benchmark.evaluate import evaluate
from cifar_lightning.benchmark.load import RunData
from cifar_lightning.errors import Interrupted, reason_of
from cifar_lightning.runs.candidate import Candidate
from cifar_lightning.runs.carried_over import CarriedOver
from cifar_lightning.runs.find import load_run
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.run import Run
from cifar_lightning.system import signals
from cifar_lightning.system.devices import check_usable, device_name, hardware_slug
from cifar_lightning.system.progress import tracked
from cifar_lightning.variants import registry
from cifar_lightning.variants.context import Unsupported, VariantContext

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Accuracy:
    """What a run's network gets right under a variant; see `Measurement`.

    Attributes:
        files: See `Measurement`, like `size_bytes`: both are of what was evaluated.
        missing: Why there is none.
    """

    test_acc: float | None
    confusion: list[list[int]] | None
    files: dict[str, str] = field(default_factory=dict)
    size_bytes: int | None = None
    carried_over: CarriedOver | None = None
    missing: str | None = None


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
        assert data is not None  # or it would be known
        try:
            predictions = evaluate(prepared.forward, data, self._device)
        except Interrupted:
            raise
        except Exception as error:
            self._fail(source, error)
            return
        confusion, other = predictions.confusion(data.num_classes), None
        fingerprint, engines = data.images.fingerprint, source.candidate.engines
        if fingerprint == load_run(source.folder).data_fingerprint:
            predictions.save(source.folder, source.candidate.variant)
        else:
            other = CarriedOver(device_name(self._device), engines, data=fingerprint)
        made = prepared.digests, prepared.size_bytes
        found = Accuracy(predictions.accuracy, confusion, *made, other)
        self._found[source.folder, source.candidate.variant] = found

    def of(self, source: Source) -> Accuracy | str:
        """Tell a run's accuracy, or what failed; it is evaluated if it has to be.

        Raises:
            Interrupted: If a signal came meanwhile.
            DeviceLost: If the device is of no use any more.
        """
        assert source.folder is not None
        if (known := self.known(source)) is not None:
            return known
        log.debug("evaluating %s", source.title)
        try:
            with (
                signals.immediate(),
                device_lock(self._device),
                torch.inference_mode(mode=False),
                registry.prepare(
                    source.candidate.variant,
                    source.build(),
                    self._device,
                    lambda: source.calibration(self._data.calibration),
                    source.metadata,
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
        if key not in self._found and (earlier := self._earlier(source)) is not None:
            self._found[key] = earlier
        return self._found.get(key)

    def _earlier(self, source: Source) -> Accuracy | None:
        """Take it from an earlier measurement of the same weights, made in the same way.

        Where it can be evaluated: only from one that was, by the same engines.
        """
        assert source.folder is not None
        run, candidate = load_run(source.folder), source.candidate
        made = candidate.weights, candidate.recipe
        measurements, _ = Measurement.read_all(source.folder, run)
        known = [
            one
            for one in measurements
            if (one.weights, one.recipe) == made
            and one.test_acc is not None
            and not (one.carried_over and one.carried_over.data)
        ]
        evaluated = [
            one
            for one in known
            if one.engines == candidate.engines
            and one.carried_over is None
            and one.confusion is not None
            and RunFolder(source.folder).prediction(candidate.variant).exists()
        ]
        lacking = self._lacking(source.folder)
        if not evaluated and lacking is None:
            return None
        if not known:
            return _after_training(run, candidate, f"{lacking}, and nobody has evaluated it before")
        here = hardware_slug(self._device)
        one = max(evaluated or known, key=lambda one: (one.hardware == here, str(one.benchmark)))
        origin = one.carried_over
        if origin is None and (one.hardware, one.engines) != (here, candidate.engines):
            origin = CarriedOver(one.device, one.engines, one.benchmark)
        return Accuracy(one.test_acc, one.confusion, one.files, one.size_bytes, origin)

    def _lacking(self, folder: Path) -> str | None:
        """Tell why a run can't be evaluated here; None if it can."""
        if not RunFolder(folder).weights.exists():
            return "the run's weights are not here"
        return "the run's data are not here" if self._data(folder) is None else None

    def _fail(self, source: Source, error: Exception) -> None:
        assert source.folder is not None
        text = str(error) if isinstance(error, Unsupported) else reason_of(error)
        log.debug("%s failed", source.candidate.variant, exc_info=error)
        check_usable(self._device, error)
        self._found[source.folder, source.candidate.variant] = text


def evaluated(sources: Sequence[Source]) -> Iterator[Source]:
    """Go through runs' candidates that may have to be evaluated, and show how far that is."""
    return tracked(sources, "evaluating", "candidates", lambda one: one.title, slow_steps=True)


def _after_training(run: Run, candidate: Candidate, otherwise: str) -> Accuracy:
    """Take fp32's from the test after training, which was in fp32 if the training was."""
    in_fp32 = [*candidate.recipe] == ["fp32"] and run.config["precision"] == "32-true"
    if in_fp32 and run.test_acc is not None:
        device = run.machine.device or run.machine.processor.title
        engines = {name: run.versions[name] for name in candidate.engines if name in run.versions}
        return Accuracy(run.test_acc, None, carried_over=CarriedOver(device, engines))
    return Accuracy(None, None, missing=f"accuracy not checked: {otherwise}")
