"""Compare all runs: which network to take, and why.

    python -m cifar_lightning.report min_acc=85 baseline=B1

reads the runs, their measurements and their training curves, and writes tables, plots and a page
that needs no network. It trains and measures nothing.
"""

import logging
from pathlib import Path

from cifar_lightning.cli.command import command
from cifar_lightning.comparison.collect import compare
from cifar_lightning.comparison.columns import check_sort, make_filter
from cifar_lightning.comparison.report import draw_details, read, write_report
from cifar_lightning.comparison.section import Section, markdown
from cifar_lightning.config.schema import ReportConfig
from cifar_lightning.errors import UserError, bad_value
from cifar_lightning.system.files import check_inside, is_disk_full
from cifar_lightning.system.formatting import relative

log = logging.getLogger(__name__)


@command("report", ReportConfig)
def main(config: ReportConfig) -> None:
    """Write the report and print its tables and verdicts."""
    check_sort(config.sort)
    keep = make_filter(config.filter)
    outputs = [Path(path) for path in config.outputs]
    if not outputs:
        raise bad_value("outputs", "[]", "at least one folder")
    recorded = read(outputs)
    damaged = [line for one in recorded for line in one.damaged]
    for line in damaged:
        log.warning("%s", line)
    comparison = compare(recorded, config.baseline, keep)
    if not any(one.lines for one in recorded):
        raise UserError(f"outputs={','.join(map(str, outputs))}: nothing that can be read")
    if not comparison.leaderboards and config.filter:
        raise bad_value("filter", ",".join(config.filter), "what at least one row fulfils")
    sections = [
        Section.of(leaderboard, config.sort, config.min_acc)
        for leaderboard in comparison.leaderboards
    ]
    details = draw_details(comparison, recorded, config.detail, config.min_acc)
    to = Path(config.to) if config.to else outputs[0] / "report"
    check_inside(outputs[0], to)
    text = markdown(sections, comparison)
    try:
        write_report(to, sections, comparison, details, config.min_acc, text)
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UserError(f"to={to}: {error.strerror}: {error.filename}") from error
    log.info("\n%s", text)
    left_out = f"; {len(damaged)} damaged, left out" if damaged else ""
    log.info("%s%s", relative((to / "index.html").absolute()), left_out)
