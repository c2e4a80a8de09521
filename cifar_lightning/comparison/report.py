"""The report: what is read, drawn and written."""

import logging
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from cifar_lightning.comparison import plots
from cifar_lightning.comparison.choice import Need
from cifar_lightning.comparison.collect import Comparison, places_of, plainest
from cifar_lightning.comparison.leaderboard import Place
from cifar_lightning.comparison.page import page
from cifar_lightning.comparison.records import Records
from cifar_lightning.comparison.section import Section, table_csv
from cifar_lightning.errors import UserError
from cifar_lightning.runs.folder import RunFolder
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


def detailed(comparison: Comparison, query: str | None) -> Place | None:
    """Find whose confusions are drawn: what is asked for, else what is to be taken.

    Raises:
        UserError: If what is asked for is not there, is several, or its confusions were not
            recorded.
    """
    places = [
        (entry, group)
        for leaderboard in comparison.leaderboards
        for entry in leaderboard.entries
        for group in entry.groups
    ]
    if query is not None:
        found = places_of(places, query, "detail")
        known = [one for one in found if one[1].confusion is not None]
        if not known:
            raise UserError(f"detail={query}: its confusion matrix was not recorded; measure again")
        return plainest(known)
    taken = [choice.entry for one in comparison.leaderboards for choice in one.choices.values()]
    choices = [(entry, entry.group) for entry in taken]
    return next((one for one in [*choices, *places] if one[1].confusion is not None), None)


def draw_details(
    comparison: Comparison, records: Records, query: str | None
) -> dict[str, tuple[str, Figure]]:
    """Draw what belongs to runs rather than to a ranking."""
    details = {}
    shown = {
        run.name: group.label
        if len(group.runs) == 1
        else f"{group.label}, seed {run.config['seed']}"
        for leaderboard in comparison.leaderboards
        for entry in leaderboard.entries
        for group in entry.groups
        for run in group.runs
    }
    curves = [read_curve(records.folders[name], label) for name, label in shown.items()]
    known = [curve for curve in curves if curve is not None]
    if known:
        details["curves"] = "Training", plots.training_curves(known)
    place = detailed(comparison, query)
    if place is not None and place[1].confusion is not None:
        entry, group = place
        classes = group.classes
        confusions = {group.name: place[1].confusion}
        _, base = next(
            leaderboard.baseline
            for leaderboard in comparison.leaderboards
            if entry in leaderboard.entries
        )
        if base is not group and base.confusion is not None:
            confusions[base.name] = base.confusion
        details["classes"] = "Accuracy per class", plots.class_accuracies(confusions, classes)
        details["confusion"] = (
            f"What {group.name} confuses",
            plots.confusion_matrix(place[1].confusion, classes),
        )
    return details


def write_report(
    to: Path,
    sections: Sequence[Section],
    comparison: Comparison,
    details: dict[str, tuple[str, Figure]],
    need: Need,
    text: str,
) -> None:
    """Replace the files of a report, all of them together; others in the folder stay."""
    files: dict[str, str | bytes] = {"report.md": text, "table.csv": table_csv(sections)}
    figures = {name: figure for name, (_, figure) in details.items()}
    for section in sections:
        figures |= section.figures
    drawings = {name: plots.Drawing.of(figure) for name, figure in figures.items()}
    for name, drawing in drawings.items():
        files |= {f"{name}.png": drawing.png, f"{name}.svg": drawing.svg}
    headings = {name: heading for name, (heading, _) in details.items()}
    files["index.html"] = page(sections, comparison, headings, drawings, need)
    replace_views(to, files, REPORT_DIGESTS)
