"""Compare ways to do the same work, in turns, so that whatever the machine does meets all alike."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch

from cifar_lightning.system import environment


def warmed_up(
    builders: Mapping[str, Callable[[], Callable[[], float]]], unit: str
) -> dict[str, Callable[[], float]]:
    """Build each side and let it work once; leave out, with its reason, one that fails."""
    sides = {}
    for name, build in builders.items():
        begin = time.perf_counter()
        try:
            side = build()
            figure = side()
        except Exception as error:  # the others' figures count all the same
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            print(f"- {name}: failed: {reason}", flush=True)
            continue
        taken = time.perf_counter() - begin
        print(f"- {name}: {figure:.0f} {unit}, after {taken:.0f} s", flush=True)
        sides[name] = side
    return sides


def interleave(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Let each side do its work once a round, the first one changing; return all figures.

    Args:
        sides: Each does its work and returns its figure, such as images per second.
        rounds: How often; a round before them warms up and does not count.
    """
    names = list(sides)
    figures: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            figure = sides[name]()
            if number >= 0:
                figures[name].append(figure)
    return figures


def table(figures: Mapping[str, list[float]], unit: str, digits: int, baseline: str) -> str:
    """Draw medians, ranges, and the median of each round's ratio to the baseline."""
    lines = [
        f"| | {unit}, median | range | ratio, median | range |",
        "| --- | ---: | --- | ---: | --- |",
    ]
    for name, values in figures.items():
        ratios = [value / base for value, base in zip(values, figures[baseline], strict=True)]
        lines.append(
            f"| {name} | {statistics.median(values):.{digits}f} "
            f"| {min(values):.{digits}f} to {max(values):.{digits}f} "
            f"| {statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} |"
        )
    return "\n".join(lines) + "\n"


def conditions(rounds: int) -> str:
    """Tell the machine, the versions, the threads and the number of rounds."""
    machine = environment.machine()
    versions = environment.versions()
    return (
        f"{machine.processor.title}, {machine.cores} cores, {torch.get_num_threads()} threads, "
        f"{platform.system()}, Python {versions['python']}, torch {versions['torch']}, "
        f"torchvision {versions['torchvision']}, lightning {versions['lightning']}; "
        f"{rounds} rounds in turns.\n"
    )
