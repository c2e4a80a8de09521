"""Which of a run's measurements are shown, by whether their benchmarks are there."""

from collections.abc import Sequence
from pathlib import Path

from cifar_lightning.runs.interleaved import BenchmarkHead
from cifar_lightning.runs.measurement import Measurement


def is_recorded(measurement: Measurement, outputs: Path) -> bool:
    """Tell whether a measurement's benchmark is in some outputs; one that names none needs none.

    Without it, it came from elsewhere: another machine may have the same processor.
    """
    benchmark = measurement.benchmark
    return benchmark is None or BenchmarkHead.path(outputs, benchmark).exists()


def shown(measurements: Sequence[Measurement], outputs: Path) -> list[Measurement]:
    """Leave out quick ones of what was measured in full on the same hardware in these outputs."""
    fully = [
        (one.configuration, one.recipe)
        for one in measurements
        if one.protocol == "full" and is_recorded(one, outputs)
    ]
    return [
        one
        for one in measurements
        if one.protocol != "quick" or (one.configuration, one.recipe) not in fully
    ]
