"""What a search for a front shows: its front as a table, and all networks as a plot."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from tabulate import tabulate

from cifar_lightning.comparison.drawing import Drawing
from cifar_lightning.comparison.plots import (
    INK,
    LETTERS,
    draw_legend,
    new_figure,
    scale_latency,
)
from cifar_lightning.comparison.scatter import LATENCY_LABEL
from cifar_lightning.runs.results import RunResults
from cifar_lightning.sweeps.found import Found
from cifar_lightning.sweeps.ladder import Rung, front
from cifar_lightning.system.escaping import visible
from cifar_lightning.system.files import write_atomically
from cifar_lightning.system.formatting import counted, relative

log = logging.getLogger(__name__)

COLOURS = ("#b6c2cf", "#6cb0f3", "#0969da", "#0a3069")  # lighter where trained shorter
OTHERS = "#bc4c00"


def show(found: Found, outputs: Path, variant: str, threads: int) -> None:
    """Print the front of the longest runs, and draw all of them."""
    log.info("\n%s", _table(found))
    log.info("%s", _draw(found, outputs, variant, threads))


def _table(found: Found) -> str:
    """Draw the front of the highest rung that has one, and what makes its networks."""
    now = found.read()
    place = max(place for place, rung in enumerate(now.points) if rung)
    rows = []
    for number in front(now.points[place]):
        timed, trained = found.latency(number), now.trained[place][number]
        rows.append(
            [
                number,
                timed.relative,
                timed.mean_ms,
                trained.val_acc,
                trained.run,
                " ".join(found.overrides(number)),
            ]
        )
    head = ["network", "relative latency", "ms", "val acc (%)", "run", "settings"]
    told = f"front after {counted(found.rungs[place], 'epoch')}:"
    return told + "\n" + tabulate(rows, head, tablefmt="github", floatfmt=("", ".3f", ".3g", ".2f"))


@dataclass(frozen=True)
class _Other:
    """A network of another run, measured in the same variant with as many threads."""

    name: str
    relative: float
    accuracy: float


def _draw(found: Found, outputs: Path, variant: str, threads: int) -> Path:
    """Draw validation accuracy against relative latency of all networks; return the PNG's path."""
    now = found.read()
    mine = {one.run for rung in now.trained for one in rung.values()}
    others = _others(outputs, variant, threads, mine)
    drawing = Drawing.of(
        lambda width: _figure(
            found.rungs, now.points, others, f"{variant}, {threads} threads", width
        )
    )
    folder = found.study.folder
    write_atomically(folder / "front.svg", drawing.svg)
    write_atomically(folder / "front.png", drawing.png)
    return Path(relative(folder / "front.png"))


def _others(outputs: Path, variant: str, threads: int, mine: set[str]) -> list[_Other]:
    found = []
    for results in RunResults.read_all(outputs):
        for row, _ in results.lines:
            if row.run in mine or (row.variant, row.threads) != (variant, threads):
                continue
            if row.lat_rel is not None and row.val_acc is not None:
                found.append(_Other(row.id, row.lat_rel, row.val_acc))
    return found


def _figure(
    rungs: Sequence[int], points: Sequence[Rung], others: Sequence[_Other], how: str, width: float
) -> Figure:
    figure, axes = new_figure(5.0, width)
    named: list[tuple[str, Artist]] = []
    for place, (epochs, rung) in enumerate(zip(rungs, points, strict=True)):
        if rung:
            drawn = axes.scatter(
                [one.latency for one in rung.values()],
                [one.accuracy for one in rung.values()],
                s=22,
                color=COLOURS[min(place, len(COLOURS) - 1)],
                zorder=3,
            )
            named.append((f"after {counted(epochs, 'epoch')}", drawn))
    highest = next(rung for rung in reversed(points) if rung)
    members = [highest[number] for number in front(highest)]
    (stairs,) = axes.step(
        [one.latency for one in members],
        [one.accuracy for one in members],
        where="post",
        color=INK,
        linestyle="--",
        linewidth=1,
        zorder=2,
    )
    named.append(("front of the longest runs", stairs))
    if others:
        drawn = axes.scatter(
            [one.relative for one in others],
            [one.accuracy for one in others],
            s=36,
            marker="D",
            color=OTHERS,
            zorder=4,
        )
        named.append(("other runs", drawn))
    for name, x, y in [
        *(
            (str(number), highest[number].latency, highest[number].accuracy)
            for number in front(highest)
        ),
        *((one.name, one.relative, one.accuracy) for one in others),
    ]:
        axes.annotate(
            visible(name),
            (x, y),
            xytext=(5, -3),
            textcoords="offset points",
            fontsize=LETTERS,
            color=INK,
        )
    scale_latency(axes, [*axes.dataLim.intervalx])
    axes.set_xlabel(LATENCY_LABEL)
    axes.set_ylabel("validation accuracy (%)")
    axes.set_title(how, fontsize=10)
    draw_legend(figure, named, "outside lower right")
    return figure
