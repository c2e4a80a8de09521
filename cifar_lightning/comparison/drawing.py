"""Figures as files and the page show them."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import matplotlib as mpl
from matplotlib.figure import Figure

from cifar_lightning.comparison import fonts
from cifar_lightning.comparison.plots import INK, NARROW, WIDTH

Draw = Callable[[float], Figure]  # of a width in inches


@dataclass(frozen=True)
class Drawing:
    """A figure as files show it.

    Attributes:
        draw: Makes the figure.
    """

    draw: Draw
    svg: str
    png: bytes

    @classmethod
    def of(cls, draw: Draw) -> Self:
        """Draw a figure as SVG, and as PNG on white."""
        figure, found, svg = _drawn(draw, WIDTH)
        if not fonts.draw_pixels(figure, found):
            figure.set_layout_engine("none")  # keep what was found: it takes as long as drawing
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=160, facecolor="white")
        return cls(draw, svg, png.getvalue())

    @property
    def inline(self) -> str:
        """SVG for a place in an HTML page."""
        return _inline(self.svg)

    @property
    def narrow(self) -> str:
        """The same for a narrow screen."""
        with mpl.rc_context({"svg.hashsalt": "narrow"}):  # names of its own on the same page
            return _inline(_drawn(self.draw, NARROW)[-1])


def _drawn(draw: Draw, width: float) -> tuple[Figure, fonts.Lettering, str]:
    """Draw a figure as SVG."""
    svg = io.StringIO()
    with fonts.without_glyph_warnings():
        figure = draw(width)
        found = fonts.take_fonts(figure)
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return figure, found, svg.getvalue()


def _inline(svg: str) -> str:
    """Leave out XML's prologue; ink has the page's colour."""
    return svg[svg.index("<svg") :].replace(INK, "currentColor")
