"""The report: what is read, drawn and written."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cifar_lightning.comparison import plots
from cifar_lightning.comparison.choice import Need
from cifar_lightning.comparison.collect import Comparison, places_of, plainest
from cifar_lightning.comparison.drawing import Draw, Drawing
from cifar_lightning.comparison.latex import table_tex
from cifar_lightning.comparison.leaderboard import Place
from cifar_lightning.comparison.markdown import table_csv
from cifar_lightning.comparison.marks import Marks
from cifar_lightning.comparison.page import page
from cifar_lightning.comparison.records import Records
from cifar_lightning.comparison.section import Section
from cifar_lightning.errors import UserError
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.views import replace_views

log = logging.getLogger(__name__)

SHOWN_GROUPS = 12  # trainings of one candidate whose curves are drawn, the best first
REPORT_DIGESTS = ".report.sha256"  # of the files written last; others are somebody else's


def read_curves(
    sections: Sequence[Section], records: Records
) -> dict[tuple[str, str], list[plots.Curve]]:
    """Read the curves of the runs that are drawn, apart for each data set."""
    shown = {
        run.name: (section.leaderboard.conditions, group.label, entry.network)
        for section in sections
        for entry in section.drawn
        for group in entry.groups[:SHOWN_GROUPS]
        for run in group.runs
    }
    found: dict[tuple[str, str], list[plots.Curve]] = defaultdict(list)
    for name, (conditions, label, network) in shown.items():
        curve = read_curve(records.folders[name], label, network)
        if curve is not None:
            found[conditions.dataset, conditions.fingerprint].append(curve)
    return found


def read_curve(folder: Path, label: str, network: str) -> plots.Curve | None:
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

    curve = plots.Curve(label, network, values("train/loss"), values("val/acc", 100))
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
    sections: Sequence[Section],
    comparison: Comparison,
    records: Records,
    query: str | None,
    marks: Marks,
) -> dict[str, tuple[str, Draw]]:
    """Draw what belongs to runs rather than to a ranking: headings, by the names of the files."""
    details: dict[str, tuple[str, Draw]] = {}
    for (dataset, fingerprint), curves in read_curves(sections, records).items():
        name = f"curves-{fingerprint[:8]}" if details else "curves"
        details[name] = f"Training on {dataset}", partial(plots.training_curves, curves, marks)
    place = detailed(comparison, query)
    if place is not None and place[1].confusion is not None:
        entry, group = place
        classes = group.classes
        confusions = {group.name: place[1].confusion}
        colors = [marks.color(entry.network)]
        base_entry, base = next(
            leaderboard.baseline
            for leaderboard in comparison.leaderboards
            if entry in leaderboard.entries
        )
        if base is not group and base.confusion is not None:
            confusions[base.name] = base.confusion
            colors.append(marks.color(base_entry.network))
        details["classes"] = (
            "Accuracy per class",
            partial(plots.class_accuracies, confusions, classes, colors),
        )
        details["confusion"] = (
            f"What {group.name} confuses",
            partial(plots.confusion_matrix, place[1].confusion, classes),
        )
    return details


def write_report(
    to: Path,
    sections: Sequence[Section],
    comparison: Comparison,
    details: dict[str, tuple[str, Draw]],
    need: Need,
    text: str,
) -> None:
    """Replace the files of a report, all of them together; others in the folder stay."""
    files: dict[str, str | bytes] = {
        "report.md": text,
        "table.csv": table_csv(sections),
        "table.tex": table_tex(sections),
    }
    figures = {name: draw for name, (_, draw) in details.items()}
    for section in sections:
        figures |= section.figures
    drawings = {name: Drawing.of(draw) for name, draw in figures.items()}
    for name, drawing in drawings.items():
        files |= {f"{name}.png": drawing.png, f"{name}.svg": drawing.svg}
    headings = {name: heading for name, (heading, _) in details.items()}
    files["index.html"] = page(sections, comparison, headings, drawings, need)
    replace_views(to, files, REPORT_DIGESTS)
