"""The report's tables for a thesis: LaTeX without further packages, one table a verdict."""

from collections.abc import Iterator, Sequence

from tabulate import tabulate

from cifar_lightning.comparison.columns import COLUMNS
from cifar_lightning.comparison.provenance import provenance
from cifar_lightning.comparison.section import SIGNS, Ranking, Section
from cifar_lightning.comparison.tables import RANK_AND_MARKS
from cifar_lightning.system.escaping import latex

SHOWN = [
    COLUMNS[name]
    for name in (
        "id", "variant", "seeds", "test_acc", "lat_rel", "lat_mean_ms", "lat_p95_ms", "size_mb",
        "params", "macs",
    )
] + [RANK_AND_MARKS]  # fmt: skip


def table_tex(sections: Sequence[Section]) -> str:
    """Write each leaderboard's entries with one number of threads as a table with its caption."""
    return "\n".join(
        line
        for section in sections
        for ranking in section.rankings
        for line in _table(section, ranking)
    )


def _table(section: Section, ranking: Ranking) -> Iterator[str]:
    leaderboard = section.leaderboard
    entries = [entry for entry in section.listed if entry.threads == ranking.threads]
    threads = f", {ranking.name}" if ranking.name else ""
    said = (f"{leaderboard.name}{threads}.", section.more, SIGNS, provenance(leaderboard))
    caption = " ".join(filter(None, said))
    yield r"\begin{table}"
    yield r"\centering\footnotesize"
    yield rf"\caption{{{latex(caption)}}}"
    yield rf"\label{{tab:{leaderboard.conditions.slug}-t{ranking.threads}}}"
    yield tabulate(
        [[latex(column.shown(leaderboard, entry)) for column in SHOWN] for entry in entries],
        [latex(column.header) for column in SHOWN],
        tablefmt="latex_raw",
        disable_numparse=True,
        colalign=["right" if column.numeric else "left" for column in SHOWN],
    )
    yield r"\end{table}"
    yield ""
