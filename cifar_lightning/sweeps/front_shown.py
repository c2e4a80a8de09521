"""What a search for a front shows: its front as a table, and all networks as a plot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from omegaconf import DictConfig
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
from cifar_lightning.sweeps.aims import Guess, aimed, in_turns
from cifar_lightning.sweeps.found import Found, Rungs
from cifar_lightning.sweeps.ladder import Rung, front
from cifar_lightning.system.escaping import visible
from cifar_lightning.system.files import write_atomically
from cifar_lightning.system.formatting import counted, relative

COLOURS = ("#b6c2cf", "#6cb0f3", "#0969da", "#0a3069")  # lighter where trained shorter
FINAL, OTHERS = "#1a7f37", "#bc4c00"


def state(now: Rungs, guessed: Mapping[int, Guess], rungs: Sequence[int], cfg: DictConfig) -> str:
    """Say in a line how many networks were trained and left, and which are the best so far."""
    trained = ", ".join(
        f"{len(of_rung)} for {counted(epochs, 'epoch')}"
        for epochs, of_rung in zip(rungs, now.trained, strict=True)
    )
    hopeful = in_turns(guessed, cfg.targets) if cfg.targets else guessed
    pruned = now.too_slow(cfg.max_ms) | ({*now.points[0]} - {*hopeful})
    said = f"trained {trained}; {len(pruned)} too slow, dominated or hopeless"
    if not cfg.targets and any(now.points):
        highest = next(rung for rung in reversed(now.points) if rung)
        members = [f"{number} ({highest[number].accuracy:.1f} %)" for number in front(highest)]
        said += f"; front so far: networks {', '.join(members)}"
    for target in sorted(cfg.targets):
        first = next(iter(aimed(guessed, target)), None)
        if first is None or not guessed[first].reaches(target):
            said += f"; {target:g} %: none yet"
        else:
            said += f"; {target:g} %: network {first}, {guessed[first].latency:.3g}"
    return said


def table(found: Found) -> str:
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


def draw(found: Found, hardware: str, variant: str, threads: int) -> Path:
    """Draw validation accuracy against relative latency of all networks; return the PNG's path."""
    now = found.read()
    mine = {one.run for rung in now.trained for one in rung.values()} | now.final_runs
    others = _others(found.study.outputs, (hardware, variant, threads), mine)
    how = f"{variant}, {counted(threads, 'thread')}"
    names = [f"after {counted(epochs, 'epoch')}" for epochs in found.rungs] + ["final runs"]
    rungs = [*zip(names, [*now.points, now.final_points], strict=True)]
    drawing = Drawing.of(lambda width: _figure(rungs, others, how, width))
    folder = found.study.folder
    write_atomically(folder / "front.svg", drawing.svg)
    write_atomically(folder / "front.png", drawing.png)
    return Path(relative(folder / "front.png"))


def _others(outputs: Path, where: tuple[str, str, int], mine: set[str]) -> list[_Other]:
    found = []
    for results in RunResults.read_all(outputs):
        for row, _ in results.lines:
            if row.run in mine or (row.hardware, row.variant, row.threads) != where:
                continue
            if row.lat_rel is not None and row.val_acc is not None:
                found.append(_Other(row.id, row.lat_rel, row.val_acc))
    return found


def _figure(
    rungs: Sequence[tuple[str, Rung]], others: Sequence[_Other], how: str, width: float
) -> Figure:
    figure, axes = new_figure(5.0, width)
    named: list[tuple[str, Artist]] = []
    for place, (name, rung) in enumerate(rungs):
        if rung:
            drawn = axes.scatter(
                [one.latency for one in rung.values()],
                [one.accuracy for one in rung.values()],
                s=22,
                color=FINAL if place == len(rungs) - 1 else COLOURS[min(place, len(COLOURS) - 1)],
                zorder=3,
            )
            named.append((name, drawn))
    highest = next(rung for _, rung in reversed(rungs) if rung)
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
