"""Names in any script are drawn in a font that has them, else as their letters' numbers."""

import warnings
from functools import partial
from xml.etree import ElementTree

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.text import Text

from cifar_lightning.comparison import fonts, plots, tensorboard
from cifar_lightning.comparison.drawing import Drawing

CLASSES = ["猫", "कुत्ता", "كلب", "кошка", "a|b $x_1$ <b>"]
MATRIX = np.eye(5, dtype=int).tolist()


def clear():
    fonts._families.cache_clear()
    fonts._hinted.clear()


@pytest.fixture(autouse=True)
def few_fonts(monkeypatch):
    """Of all fonts, only matplotlib's own are installed; no warning of one is allowed."""
    own = [font for font in fonts.fontManager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(fonts.fontManager, "ttflist", own)
    monkeypatch.setattr(fonts, "findSystemFonts", list)
    clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield
    clear()
    fonts.fontManager._findfont_cached.cache_clear()


def install(path, monkeypatch):
    """Write a font that has one letter, and have it found."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    pen.lineTo((0, 900))
    pen.lineTo((900, 0))
    pen.closePath()
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", "cat"])
    builder.setupCharacterMap({ord("猫"): "cat"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "cat": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "cat": (1000, 0)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Cats", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    monkeypatch.setattr(fonts, "findSystemFonts", lambda: [str(path)])
    clear()


def draws():
    confusions = {"猫": MATRIX, "b": MATRIX}
    yield partial(plots.class_accuracies, confusions, CLASSES, ["r", "b"])
    images = [np.zeros((32, 32, 3), np.uint8)] * 5
    yield lambda width: plots.named_images(images, [f"{one}\n→ {CLASSES[0]}" for one in CLASSES])


def texts(figure):
    return {line for text in figure.findobj(Text) for line in text.get_text().split("\n")}


@pytest.mark.parametrize("draw", draws())
def test_letters_that_no_font_has(draw, caplog):
    drawn = []
    drawing = Drawing.of(lambda width: drawn.append(draw(width)) or drawn[-1])
    assert drawing.png.startswith(b"\x89PNG")
    seen = texts(drawn[-1])
    assert r"\u732b" in seen | {one.removeprefix("→ ") for one in seen}
    assert not any("猫" in one or "क" in one for one in seen)
    assert {"كلب", "кошка"} <= seen
    Drawing.of(draw)
    (hint,) = [one.getMessage() for one in caplog.records]
    assert "猫" in hint
    assert "fonts-noto-cjk" in hint


def test_an_svg_and_the_page_have_the_letters_themselves():
    drawing = Drawing.of(partial(plots.confusion_matrix, MATRIX, CLASSES))
    for svg in (drawing.svg, drawing.narrow):
        shown = "".join(ElementTree.fromstring(svg).itertext())
        assert [one for one in CLASSES if one not in shown] == []


@pytest.mark.parametrize("draw", draws())
def test_a_font_that_was_installed_since_is_taken(draw, tmp_path, monkeypatch, caplog):
    Drawing.of(draw)
    install(tmp_path / "cats.ttf", monkeypatch)
    caplog.clear()
    drawn = []
    Drawing.of(lambda width: drawn.append(draw(width)) or drawn[-1])
    with_cats = [one for one in drawn[-1].findobj(Text) if "猫" in one.get_text()]
    assert with_cats
    assert all("Cats" in one.get_fontfamily() for one in with_cats)
    (hint,) = [one.getMessage() for one in caplog.records]
    assert "猫" not in hint
    assert "क" in hint


def test_usual_names_search_no_fonts(monkeypatch):
    monkeypatch.setattr(fonts, "findSystemFonts", None)
    Drawing.of(partial(plots.confusion_matrix, [[1, 2], [3, 4]], ["cat", "кошка"]))


def test_a_damaged_font_is_left_out(tmp_path, monkeypatch):
    (tmp_path / "bad.ttf").write_bytes(b"no font")
    monkeypatch.setattr(fonts, "findSystemFonts", lambda: [str(tmp_path / "bad.ttf")])
    assert fonts.Lettering.of(["猫"]).spelled("猫 a") == r"\u732b a"


def test_names_of_images_are_as_wide_as_these():
    names = ["a long name of a class\n→ कुत्ता", "猫" * 9, "unbreakable_name_of_a_class"]
    figure = plots.named_images([np.zeros((32, 32, 3), np.uint8)] * 3, names)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    for number, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[:number])
        assert box.y1 <= figure.bbox.y1
        assert box.width <= 1.1 * figure.dpi


def test_tensorboards_matrix_has_no_boxes(finished_run, tmp_path, monkeypatch):
    """It is drawn as pixels alone."""
    import shutil
    from dataclasses import replace

    from cifar_lightning.runs.find import find_run
    from cifar_lightning.runs.run import Run
    from cifar_lightning.system.event_files import Writer

    folder = find_run(shutil.copytree(finished_run, tmp_path / "outputs", symlinks=True), "tiny")
    run = Run.load(folder)
    replace(run, classes=["猫", *run.classes[1:]]).save(folder)
    drawn = []
    monkeypatch.setattr(Writer, "add_figure", lambda self, tag, figure, step: drawn.append(figure))
    tensorboard.draw(folder)
    (figure,) = drawn
    figure.draw_without_rendering()
    assert r"\u732b" in texts(figure)
    assert "猫" not in texts(figure)
