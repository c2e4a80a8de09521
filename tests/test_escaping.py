"""Other people's text stays text: in terminals, Markdown, spreadsheets, pages and plots."""

import csv
import io
import json
import logging
import re
import unicodedata
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from xml.etree import ElementTree

import markdown as markdown_reader  # comes with TensorBoard
import pytest
from conftest import with_weights, write_and_read
from hypothesis import given
from hypothesis import strategies as st
from plotly.offline import get_plotlyjs
from simulated import NEED, a_run, entry, leaderboard, measured
from test_results import place

from cifar_lightning.benchmark.candidates import of_run
from cifar_lightning.cli import report as report_command
from cifar_lightning.comparison import plots, scatter
from cifar_lightning.comparison.drawing import Drawing
from cifar_lightning.comparison.marks import Marks
from cifar_lightning.comparison.scatter import NAMED
from cifar_lightning.deploy.card import Exported, card
from cifar_lightning.runs.layout import draw_table
from cifar_lightning.system import escaping
from cifar_lightning.variants.agreement import Agreement

HOSTILE = (
    "\x1b[2J\x1b]0;title\x07",
    "a\u202eb\x9b1m\x7f",
    "two\nlines\r\u2028end",
    "x | y \\| z",
    "[click](http://evil.example)",
    "![x](http://evil.example/x.png)",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "&lt;b&gt;",
    "# heading",
    "- item",
    "1. item",
    "**bold** _slanted_ `code` ~~gone~~",
    "$x_1$",
    "[x]: http://evil.example",
    '=HYPERLINK("http://evil.example")',
    "@SUM(1+1)*cmd|' /C calc'!A0",
    "\t=1+1",
    "+1+cmd",
    "-2+3",
    "name\udcff",
    "_hidden",
)
PLAIN = (
    "B1-45min",
    "a_b",
    "channels_last+fp16",
    "-",
    "1=",
    "-0.50",
    "90.00 ± 0.10",
    "1.234 ~",
    "0.5 to 0.6",
    "fp32 (failed)",
    "Intel(R) Xeon(R) CPU @ 2.20GHz, 1 thread",
    "B2 fp32 [2 changes at once]: optim.lr 0.1 → 0.2; epochs 3 → 7.",
    "café 猫",
)
CONTROLS = {"Cc", "Cs", "Zl", "Zp"}
DIRECTION = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def obeyed(text, allowed="\n"):
    """List what a terminal would obey."""
    return [
        character
        for character in text
        if (unicodedata.category(character) in CONTROLS or character in DIRECTION)
        and character not in allowed
    ]


class Page(HTMLParser):
    """What a browser would make of a page: its elements, and the text of its cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def as_read(text):
    return Page(markdown_reader.markdown(text, extensions=["tables"]))


def begins_formula(cell):
    return len(cell.strip()) > 1 and cell.lstrip().startswith(("=", "+", "-", "@"))


def cells(line):
    return re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1]


@pytest.mark.parametrize("text", PLAIN)
def test_ordinary_names_stay_as_they_are(text):
    assert escaping.visible(text) == text
    assert escaping.terminal(text) == text
    assert escaping.markdown_cell(text) == text
    assert escaping.csv_cell(text) == text


@given(st.text(st.characters(), max_size=30))
def test_no_text_reaches_a_terminal_raw(text):
    assert not obeyed(escaping.visible(text), "")
    assert not obeyed(escaping.terminal(text), "\n\t")
    assert not obeyed(escaping.markdown_cell(text), "")
    assert not obeyed(str(escaping.csv_cell(text)), "")


@given(st.text("|\\`*_[]()<>#~-+1. ab:/!&;$\n", max_size=20))
def test_no_text_makes_another_row_or_cell(text):
    drawn = draw_table(("A", "B"), [(text, "end")], ())
    assert len(drawn.splitlines()) == 3
    assert {len(cells(line)) for line in drawn.splitlines()} == {2}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_markdown_reader_sees_text(text):
    page = as_read(draw_table(("A", "B"), [(text, "end")], ()))
    assert set(page.tags) <= {"table", "thead", "tbody", "tr", "th", "td"}
    assert [len(row) for row in page.rows] == [2, 2]
    assert page.rows[1][1].strip() == "end"
    for sentence in (text, f"Take {text}: it is good."):
        assert set(as_read(escaping.markdown(sentence)).tags) == {"p"}
        assert set(as_read(f"- {escaping.markdown(sentence)}").tags) == {"ul", "li"}


def typeset(text):
    """Read LaTeX back as a reader of the page does; what it would obey is an error."""
    shown = {
        r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^",
        r"\textless{}": "<", r"\textgreater{}": ">", r"\textbar{}": "|", r"$\pm$": "±",
    }  # fmt: skip
    token = re.compile("|".join([*map(re.escape, shown), r"\\[{}$&#_%]", r"\{[][*\"]?\}", "."]))
    read = []
    for one in token.findall(text):
        bare = one[1:-1] if one[0] == "{" else one[-1]
        assert len(one) > 1 or one not in r"\{}$&#_%~^[]*|<>", f"{one} of {text}"
        read.append(shown.get(one, bare))
    return "".join(read)


@pytest.mark.parametrize("text", [*HOSTILE, *PLAIN, r"\input{x}", "a--b''c", "%", "[2pt]"])
def test_latex_shows_text(text):
    assert typeset(escaping.latex(text)) == escaping.visible(text)
    assert "--" not in escaping.latex(text)  # would be one dash
    assert "\n" not in escaping.latex(text)


@given(st.text("\\{}$&#_%~^[]*|<>-'`?!,a \n", max_size=20))
def test_no_text_is_obeyed_by_latex(text):
    assert typeset(escaping.latex(text)) == escaping.visible(text)


@given(st.text("=+-@\t\r\n 1e.ab'", max_size=8))
def test_no_cell_begins_a_formula(text):
    cell = escaping.csv_cell(text)
    if begins_formula(cell):
        float(cell)  # a number computes to itself


def test_numbers_stay_numbers():
    values = [1, -2, -1.5, True, None, "-1.5", "1e5"]
    assert [escaping.csv_cell(value) for value in values] == values


def test_a_message_is_one_line_and_a_table_is_several():
    formatter = escaping.LogFormatter("%(message)s")

    def shown(message, *arguments):
        record = logging.LogRecord("x", logging.INFO, "x", 1, message, arguments, None)
        return formatter.format(record)

    assert shown("%s is left out", "a\nerror: b\x1b[2J") == r"a\nerror: b\x1b[2J is left out"
    assert shown("\n%s", "| a |\n| b\x1b |") == "\n| a |\n| b\\x1b |"


def hostile_runs(outputs):
    """What a record's gate lets through: a device, names of classes, reasons, an error."""
    for number, text in enumerate(HOSTILE):
        run = replace(a_run(f"B{number}", epochs=number + 2), classes=[text, f"{text}2"])
        one = measured(run, acc=80 + number / 2, truth=1 + number / 10)
        # Every other one on a device of its own, so that names stand in headings, too.
        one = replace(one, device=text) if number % 2 else one
        reason = replace(
            one, variant="int8", recipe={"int8": 2}, status="failed", reason=text, latency=None
        )
        place(outputs, run, one, reason)
        failed = a_run(f"F{number}", epochs=number + 50)
        failed = replace(failed, status="failed", test_acc=None, val_acc=None, error=text)
        place(outputs, failed)


def test_the_table_of_hostile_runs(tmp_path):
    hostile_runs(tmp_path)
    rows = write_and_read(tmp_path)
    assert len(rows) == 3 * len(HOSTILE)
    drawn = (tmp_path / "results.md").read_text()
    assert len(drawn.splitlines()) == len(rows) + 2
    assert len({len(cells(line)) for line in drawn.splitlines()}) == 1
    assert not obeyed(drawn)
    page = as_read(drawn)
    assert set(page.tags) <= {"table", "thead", "tbody", "tr", "th", "td"}
    assert {len(row) for row in page.rows} == {11}
    table = (tmp_path / "results.csv").read_text()
    assert not obeyed(table)
    stored = list(csv.DictReader(io.StringIO(table)))
    assert len(stored) == len(rows)
    for value in (value for row in stored for value in row.values()):
        assert not begins_formula(value)
    assert all(float(row["lat_mean_ms"]) > 0 for row in stored if row["status"] == "ok")


def test_the_report_of_hostile_runs(tmp_path, call):
    hostile_runs(tmp_path)
    ended = call(report_command.main, f"outputs={tmp_path}")
    assert (ended.status, ended.err) == (0, "")
    assert not obeyed(ended.out)
    folder = tmp_path / "report"
    text = (folder / "report.md").read_text()
    assert not obeyed(text)
    page = as_read(text)
    known = {"h2", "p", "ul", "li", "code", "table", "thead", "tbody", "tr", "th", "td"}
    assert set(page.tags) <= known
    assert len({len(row) for row in page.rows}) == 1
    for row in csv.reader((folder / "table.csv").open()):
        for cell in filter(begins_formula, row):
            float(cell)  # a negative number computes to itself
    tex = (folder / "table.tex").read_text()
    assert not obeyed(tex)
    rows = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {9}
    assert len(rows) == len(HOSTILE) + tex.count(r"\begin{tabular}")
    page = (folder / "index.html").read_text()
    for script in re.findall(r"<script.*?</script>", page, re.DOTALL):
        assert not obeyed(script.replace(get_plotlyjs(), ""))
    seen = Page(page)
    assert "img" not in seen.tags
    leaderboards = 1 + len(HOSTILE) // 2
    assert seen.tags.count("script") == leaderboards + 2  # a plot each, the library, the sorting
    assert not obeyed(page.replace(get_plotlyjs(), ""))
    for path in folder.glob("*.svg"):
        ElementTree.parse(path)  # a control character would end it


def test_the_card_of_a_hostile_run(tmp_path):
    for text in HOSTILE:
        run = replace(a_run("B1"), classes=[text, "```"])
        settings = run.config | {"data": run.config["data"] | {"name": text}}
        folder = place(tmp_path, replace(run, config=settings), measured(run))
        found = Agreement(1, 0.0, 1)
        shown = card(
            of_run(folder, "fp32", 1), Exported("onnx", ["model.onnx"], "load()", found, "test")
        )
        assert not obeyed(shown)
        page = Page(
            markdown_reader.markdown(
                shown, extensions=["tables", "fenced_code"], output_format="html"
            )
        )
        known = {"h1", "h2", "p", "code", "pre", "table", "thead", "tbody", "tr", "th", "td"}
        assert set(page.tags) <= known, text
        assert page.tags.count("h1") == 1
        assert page.tags.count("h2") == 3
        assert page.tags.count("pre") == 2


def test_plots_show_names_as_text():
    named = leaderboard(*(entry(text, 60 + n, 1 + n / 9) for n, text in enumerate(HOSTILE)))
    count = len(HOSTILE)
    confusion = [[5 * (row == column) for column in range(count)] for row in range(count)]
    marks = Marks(HOSTILE, ["fp32"])
    curves = [plots.Curve(text, text, [1.0, 0.5], [50.0, 60.0]) for text in HOSTILE]
    draws = [
        (HOSTILE, partial(plots.latency_distributions, named.entries, Marks.of(named.entries))),
        (HOSTILE, partial(plots.training_curves, curves, marks)),
        (HOSTILE, partial(plots.confusion_matrix, confusion, HOSTILE)),
        (
            HOSTILE,
            partial(
                plots.class_accuracies,
                dict.fromkeys(HOSTILE, confusion),
                HOSTILE,
                ["r"] * count,
            ),
        ),
    ]
    for some in (HOSTILE[:NAMED], HOSTILE[NAMED:]):  # no more are named in a plot
        few = leaderboard(*(entry(text, 60 + n, 1 + n / 9) for n, text in enumerate(some)))
        draw = partial(scatter.accuracy_latency, few, 1, NEED, Marks.of(few.entries))
        draws.append((some, draw))
    for texts, draw in draws:
        drawing = Drawing.of(draw)
        drawn = "".join(ElementTree.fromstring(drawing.svg).itertext())
        assert [text for text in map(escaping.visible, texts) if text not in drawn] == []
        assert not obeyed(drawn)
        assert drawing.png.startswith(b"\x89PNG")


def test_predictions_of_hostile_names(tmp_path, finished_run, call):
    import shutil

    from PIL import Image

    from cifar_lightning.cli import predict
    from cifar_lightning.runs.run import Run

    outputs = tmp_path / "outputs"
    shutil.copytree(finished_run, outputs)
    (folder,) = (path.parent for path in outputs.glob("runs/*/run.json"))
    run = Run.load(folder)
    replace(run, classes=list(HOSTILE[:10])).save(folder)
    with_weights(folder, lambda tensor: tensor)  # they say the classes, too
    for name in ("=1+1.png", "\x1b[2J.png", "@SUM.png"):
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    (tmp_path / "\x1bbad.png").write_bytes(b"")
    arguments = ("run=tiny", f"outputs={outputs}", "top=10", "device=cpu", str(tmp_path))
    ended = call(predict.main, *arguments)
    assert not obeyed(ended.out + ended.err)
    assert len(ended.out.splitlines()) == 3
    ended = call(predict.main, *arguments, "format=csv")
    rows = list(csv.reader(io.StringIO(ended.out)))
    assert not obeyed(ended.out)
    assert not any(begins_formula(cell) for row in rows for cell in row)
    assert len(rows) == 1 + 3 * 10
    ended = call(predict.main, *arguments, "format=json")
    assert not obeyed(ended.out)
    found = json.loads(ended.out)
    assert set(found[0]["classes"]) == set(HOSTILE[:10])  # a program reads the names themselves
