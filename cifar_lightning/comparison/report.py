"""The report: what is read, drawn and written."""

import logging
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from cifar_lightning.comparison import plots
from cifar_lightning.comparison.collect import Comparison, entries_of, plainest
from cifar_lightning.comparison.entry import Entry
from cifar_lightning.comparison.page import page
from cifar_lightning.comparison.section import Section, table_csv
from cifar_lightning.errors import UserError
from cifar_lightning.runs.folder import RUNS, RunFolder
from cifar_lightning.runs.results import RunResults
from cifar_lightning.runs.views import replace_views

log = logging.getLogger(__name__)

REPORT_DIGESTS = ".report.sha256"  # of the files written last; others are somebody else's


def read_curve(folder: Path, label: str) -> plots.Curve | None:
    """Read a run's training curve out of its TensorBoard files; None if there is none."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = RunFolder(folder).tensorboard
    if not curves.is_dir():
        return None
    logging.getLogger("tensorboard").setLevel(logging.WARNING)
    events = EventAccumulator(
        str(curves), size_guidance={"scalars": 0, "images": 1, "histograms": 1}
    )
    try:
        events.Reload()
    except Exception as error:  # whatever TensorBoard makes of a damaged file
        log.warning("%s: no curve (%s)", curves, error)
        return None
    tags = events.Tags()["scalars"]

    def values(tag: str, factor: float = 1.0) -> list[float]:
        return [factor * point.value for point in events.Scalars(tag)] if tag in tags else []

    curve = plots.Curve(label, values("train/loss"), values("val/acc", 100))
    return curve if curve.train_loss else None


def detailed(comparison: Comparison, query: str | None, min_acc: float) -> Entry | None:
    """Find the entry whose confusions are drawn: the one asked for, else the one to take.

    Raises:
        UserError: If the one asked for is not there, is several, or its confusions were not
            recorded.
    """
    entries = [entry for leaderboard in comparison.leaderboards for entry in leaderboard.entries]
    if query is not None:
        found = entries_of(entries, query, "detail")
        known = [entry for entry in found if entry.confusion is not None]
        if not known:
            raise UserError(f"detail={query}: its confusion matrix was not recorded; measure again")
        return plainest(known)
    choices = [
        leaderboard.recommend(min_acc)
        or max(leaderboard.entries, key=lambda entry: entry.accuracy.mean)
        for leaderboard in comparison.leaderboards
    ]
    return next((one for one in [*choices, *entries] if one.confusion is not None), None)


def read(outputs: Sequence[Path]) -> list[RunResults]:
    """Read every run below several folders.

    Raises:
        UserError: If one is no outputs folder, or there is no run in any.
    """
    recorded = []
    for folder in outputs:
        if not (folder / RUNS).is_dir():
            raise UserError(f"outputs={folder}: there is no folder {RUNS} in it; train a run first")
        recorded += RunResults.read_all(folder)
    if not any(one.lines or one.damaged for one in recorded):
        raise UserError(f"outputs={','.join(map(str, outputs))}: no finished run in it")
    return recorded


def draw_details(
    comparison: Comparison, recorded: Sequence[RunResults], query: str | None, min_acc: float
) -> dict[str, tuple[str, Figure]]:
    """Draw what belongs to runs rather than to a ranking."""
    details = {}
    shown = {
        run.name: entry.label
        if len(entry.runs) == 1
        else f"{entry.label}, seed {run.config['seed']}"
        for leaderboard in comparison.leaderboards
        for entry in leaderboard.entries
        for run in entry.runs
    }
    folders = {one.run.name: one.folder for one in recorded if one.run is not None}
    curves = [read_curve(folders[name], label) for name, label in shown.items()]
    known = [curve for curve in curves if curve is not None]
    if known:
        details["curves"] = "Training", plots.training_curves(known)
    entry = detailed(comparison, query, min_acc)
    if entry is not None and entry.confusion is not None:
        classes = entry.classes
        confusions = {entry.name: entry.confusion}
        leaderboard = next(
            leaderboard for leaderboard in comparison.leaderboards if entry in leaderboard.entries
        )
        if leaderboard.baseline is not entry and leaderboard.baseline.confusion is not None:
            confusions[leaderboard.baseline.name] = leaderboard.baseline.confusion
        details["classes"] = "Accuracy per class", plots.class_accuracies(confusions, classes)
        details["confusion"] = (
            f"What {entry.name} confuses",
            plots.confusion_matrix(entry.confusion, classes),
        )
    return details


def write_report(
    to: Path,
    sections: Sequence[Section],
    comparison: Comparison,
    details: dict[str, tuple[str, Figure]],
    min_acc: float,
    text: str,
) -> None:
    """Replace the files of a report, all of them together; others in the folder stay."""
    files: dict[str, str | bytes] = {"report.md": text, "table.csv": table_csv(sections)}
    figures = {name: figure for name, (_, figure) in details.items()}
    for section in sections:
        figures |= section.figures
    for name, figure in figures.items():
        files |= {f"{name}.png": plots.png(figure), f"{name}.svg": plots.svg(figure)}
    files["index.html"] = page(sections, comparison, details, min_acc)
    replace_views(to, files, REPORT_DIGESTS)
