"""What is known of the accuracy and latency of files that are exported."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch

from cifar_lightning.benchmark.candidates import Source
from cifar_lightning.benchmark.evaluate import evaluate
from cifar_lightning.benchmark.load import RunData
from cifar_lightning.deploy.wanted import CPU
from cifar_lightning.runs.find import load_run
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.runs.predictions import Predictions
from cifar_lightning.system.devices import hardware_slug
from cifar_lightning.variants.context import Forward


@dataclass(frozen=True)
class Evaluated:
    """The run's measurement of the variant that files are exported as.

    Attributes:
        measurement: None if it was not measured; the one of these very files, if there is one.
        same_files: Whether it is of them, byte for byte.
        images: Test images of which the classes were compared with those of the files that were
            measured; None where they were not, or need not be.
        same_class: How many of these get the same class.
    """

    measurement: Measurement | None = None
    same_files: bool = False
    images: int | None = None
    same_class: int | None = None


def evaluated(
    source: Source, variant: str, digests: Mapping[str, str], forward: Forward, data: RunData
) -> Evaluated:
    """Find what was measured of files, or of those that were made in the same way.

    Args:
        source: The network.
        variant: What is exported.
        digests: Of the files; empty where the weights are.
        forward: What is loaded of them.
        data: Of runs; without the run's, classes are not compared.
    """
    if source.folder is None:
        return Evaluated()
    made = source.candidate.weights, source.candidate.recipe
    found, _ = Measurement.read_all(source.folder, load_run(source.folder))
    alike = [one for one in found if one.variant == variant and one.has_figures]
    alike = [one for one in alike if (one.weights, one.recipe) == made]
    if not alike:
        return Evaluated()

    def preference(one: Measurement) -> tuple[bool, ...]:
        known = one.test_acc is not None
        here = one.hardware == hardware_slug(CPU)
        return known and one.files == digests, known, one.protocol == "full", here

    best = max(alike, key=preference)
    if preference(best)[0]:
        return Evaluated(best, same_files=True)
    images = data(source.folder)
    with suppress(FileNotFoundError, ValueError):
        before = Predictions.read(source.folder, variant).predicted
        if images is not None and best.test_acc is not None:
            with torch.inference_mode():
                now = evaluate(forward, images, CPU).predicted
            if len(now) == len(before):
                return Evaluated(best, False, len(now), int(np.sum(now == before)))
    return Evaluated(best)
