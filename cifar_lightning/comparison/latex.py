"""The report's tables for a thesis: LaTeX without further packages, one table a verdict."""

import re
from collections.abc import Iterator, Sequence
from string import ascii_lowercase

from tabulate import tabulate

from cifar_lightning.comparison.columns import COLUMNS, marks
from cifar_lightning.comparison.provenance import provenance
from cifar_lightning.comparison.section import SIGNS, Ranking, Section
from cifar_lightning.system.escaping import latex

NEW_LINE = r"\\"
WORDS = r"\(.*\)|\S+"
SHOWN = [
    COLUMNS[name]
    for name in (
        "id", "variant", "seeds", "test_acc", "lat_rel", "lat_mean_ms", "lat_p95_ms", "size_mb",
        "params", "lat_rank",
    )
]  # fmt: skip


def table_tex(sections: Sequence[Section]) -> str:
    """Write each leaderboard's entries with one number of threads as a table with its caption.

    Narrow enough for A4: marks are letters, which the caption explains. What else there is to say
    of a row stands in ``table.csv``.
    """
    return "\n".join(
        line
        for section in sections
        for ranking in section.rankings
        for line in _table(section, ranking)
    )


def _table(section: Section, ranking: Ranking) -> Iterator[str]:
    leaderboard = section.leaderboard
    entries = [entry for entry in section.listed if entry.threads == ranking.threads]
    marked = [marks(leaderboard, entry) for entry in entries]
    different = dict.fromkeys(mark for some in marked for mark in some)
    signs = {mark: _letter(index) for index, mark in enumerate(different)}
    threads = f", {ranking.name}" if ranking.name else ""
    said = (f"{leaderboard.name}{threads}.", section.more, SIGNS, provenance(leaderboard))
    caption = " ".join(filter(None, said))
    legend = ", ".join(f"{_raised([sign])}{latex(mark)}" for mark, sign in signs.items())
    yield r"\begin{table}"
    yield r"\centering\scriptsize\setlength{\tabcolsep}{2pt}"
    yield rf"\caption{{{latex(caption)}{f' {legend}.' if legend else ''}}}"
    yield rf"\label{{tab:{leaderboard.conditions.slug}-t{ranking.threads}}}"
    yield tabulate(
        [
            [latex(column.shown(leaderboard, entry)) for column in SHOWN[:-1]]
            + [latex(SHOWN[-1].shown(leaderboard, entry)) + _raised([signs[one] for one in some])]
            for entry, some in zip(entries, marked, strict=True)
        ],
        [_stacked(latex(str(column.header))) for column in SHOWN],
        tablefmt="latex_raw",
        disable_numparse=True,
        colalign=["right" if column.numeric else "left" for column in SHOWN],
    )
    yield r"\end{table}"
    yield ""


def _letter(index: int) -> str:
    """Go on with aa after z."""
    repeated, letter = divmod(index, len(ascii_lowercase))
    return ascii_lowercase[letter] * (repeated + 1)


def _raised(signs: Sequence[str]) -> str:
    return rf"$^{{{','.join(signs)}}}$" if signs else ""


def _stacked(header: str) -> str:
    """Put each word on a line of its own; what is in brackets is one."""
    return rf"\shortstack{{{NEW_LINE.join(re.findall(WORDS, header))}}}"
