"""Compare all runs: which network to take, and why.

    python -m cifar_lightning.report min_acc=85 baseline=B1

reads the runs, their measurements and their training curves, and writes tables, plots and a page
that needs no network. It trains and measures nothing.
"""

import logging
from pathlib import Path

from cifar_lightning.cli.command import command
from cifar_lightning.comparison.choice import Need
from cifar_lightning.comparison.collect import compare
from cifar_lightning.comparison.filters import make_filter
from cifar_lightning.comparison.markdown import markdown, overall, summary
from cifar_lightning.comparison.marks import Marks
from cifar_lightning.comparison.records import Records
from cifar_lightning.comparison.report import draw_details, write_report
from cifar_lightning.comparison.section import Section
from cifar_lightning.comparison.tables import check_sort
from cifar_lightning.config.schema import ReportConfig
from cifar_lightning.errors import UserError, bad_value
from cifar_lightning.system.files import check_inside, is_disk_full
from cifar_lightning.system.formatting import relative

log = logging.getLogger(__name__)

MOST_LINES = 200  # in a terminal, which the study's 500 would fill several times


@command("report", ReportConfig)
def main(config: ReportConfig) -> None:
    """Write the report and print its verdicts."""
    check_sort(config.sort)
    keep = make_filter(config.filter)
    need = Need(config.min_acc, config.max_ms, config.stat)
    outputs = [Path(path) for path in config.outputs]
    if not outputs:
        raise bad_value("outputs", "[]", "at least one folder")
    records = Records.read(outputs)
    for line in records.damaged:
        log.warning("%s", line)
    comparison = compare(records, need, config.baseline, keep)
    if not any(one.lines for one in records.runs):
        raise UserError(f"outputs={','.join(map(str, outputs))}: nothing that can be read")
    if not comparison.leaderboards and config.filter:
        raise bad_value("filter", ",".join(config.filter), "what at least one row fulfils")
    marks = Marks.of(comparison.entries)
    sections = [
        Section.of(leaderboard, config.sort, need, marks) for leaderboard in comparison.leaderboards
    ]
    details = draw_details(sections, comparison, records, config.detail, marks)
    to = Path(config.to) if config.to else outputs[0] / "report"
    check_inside(outputs[0], to)
    text = markdown(sections, comparison)
    try:
        write_report(to, sections, comparison, details, need, text)
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UserError(f"to={to}: {error.strerror}: {error.filename}") from error
    if len(text.splitlines()) <= MOST_LINES:
        log.info("\n%s", text)
    else:
        log.info("\n%s", summary(sections, comparison))
        whole = relative((to / "report.md").absolute())
        log.info("Why not the others, what was changed, commands for each row: %s", whole)
    if answer := overall(sections):
        log.info("%s", answer)  # again, where a long text has left it out of sight
    if elsewhere := [str(path) for path in outputs if relative(path).is_absolute()]:
        log.info("the commands need outputs=%s", " or outputs=".join(elsewhere))
    left_out = f"; {len(records.damaged)} damaged, left out" if records.damaged else ""
    log.info("%s%s", relative((to / "index.html").absolute()), left_out)
