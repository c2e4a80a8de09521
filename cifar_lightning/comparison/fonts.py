"""Letters of names in figures: drawn in an installed font that has them, else as their numbers."""

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from threading import Event
from typing import Self

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, findSystemFonts, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator

log = logging.getLogger(__name__)
# That a font lacks the usual weight is no news for a reader.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)

_hinted = Event()
BOXES = "Last Resort"  # a font that has a box for every letter


@dataclass(frozen=True)
class Lettering:
    r"""What the letters of some texts are drawn in.

    Attributes:
        families: Installed fonts with letters that the usual one lacks.
        numbers: What to show, as ``\u732b``, for those that none has, by their code points.
    """

    families: tuple[str, ...]
    numbers: Mapping[int, str]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Self:
        """Find fonts for some texts; hint once in a process that one should be installed."""
        families, left = _families(frozenset("".join(texts)) - _usual() - {"\n"})
        if left and not _hinted.is_set():
            _hinted.set()
            log.warning(
                "no installed font has %s: plots as PNG and in TensorBoard show such letters by "
                "their numbers; Debian's fonts-noto-cjk and fonts-noto-core have most",
                " ".join(sorted(left)[:8]),
            )
        return cls(families, {ord(one): one.encode("unicode_escape").decode() for one in left})

    def spelled(self, text: str) -> str:
        """Show what no font has as its number."""
        return text.translate(self.numbers)


def take_fonts(figure: Figure) -> Lettering:
    """Let a figure's texts fall back on installed fonts where the usual one lacks letters."""
    texts = figure.findobj(Text)
    found = Lettering.of(text.get_text() for text in texts)
    if found.families:
        for text in texts:
            text.set_fontfamily([*text.get_fontfamily(), *found.families])
    return found


def draw_pixels(figure: Figure, found: Lettering | None = None) -> bool:
    """Make a figure one without boxes: pixels, unlike an SVG, can't borrow a reader's fonts.

    Args:
        figure: It is changed.
        found: What `take_fonts` gave, if it was called already.

    Returns:
        Whether there were any, so that texts have another length now.
    """
    found = found or take_fonts(figure)
    if not found.numbers:
        return False
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if isinstance(axis.get_major_locator(), FixedLocator):  # its texts are set when it is drawn
            labels = [found.spelled(text.get_text()) for text in axis.get_ticklabels()]
            axis.set_ticklabels(labels)
    for text in figure.findobj(Text):
        text.set_text(found.spelled(text.get_text()))
    return True


@contextmanager
def without_glyph_warnings() -> Iterator[None]:
    """Leave out matplotlib's warning of each letter: an SVG's reader has more fonts."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        yield


@cache
def _usual() -> frozenset[str]:
    return frozenset(map(chr, FT2Font(findfont(FontProperties())).get_charmap()))


@cache
def _families(letters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Choose the installed fonts that have most of some letters, then of those left over.

    Returns:
        Their names, and the letters that none has.
    """
    if not letters:
        return (), letters
    # matplotlib keeps a list of fonts, and does not see those that are installed later.
    for path in {*findSystemFonts()} - {font.fname for font in fontManager.ttflist}:
        with suppress(Exception):  # damaged, or one of coloured pictures
            fontManager.addfont(path)
    found: dict[str, frozenset[str]] = {}
    for font in fontManager.ttflist:
        if font.style == "normal" and BOXES not in font.name:
            with suppress(Exception):  # removed since
                face = FT2Font(font.fname, face_index=font.index)
                found[font.name] = frozenset(
                    one for one in letters if face.get_char_index(ord(one))
                )
    chosen: list[str] = []
    while letters:
        best = max(found, key=lambda name: (len(found[name] & letters), "Sans" in name, -len(name)))
        if not found[best] & letters:
            break
        chosen.append(best)
        letters -= found[best]
    return tuple(chosen), letters
