"""Figures as files and the page show them."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import matplotlib as mpl
from matplotlib.figure import Figure

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
        figure, svg, png = draw(WIDTH), io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        figure.set_layout_engine("none")  # keep what has been found: it takes as long as drawing
        figure.savefig(png, format="png", dpi=160, facecolor="white")
        return cls(draw, svg.getvalue(), png.getvalue())

    @property
    def inline(self) -> str:
        """SVG for a place in an HTML page."""
        return _inline(self.svg)

    @property
    def narrow(self) -> str:
        """The same for a narrow screen."""
        svg = io.StringIO()
        with mpl.rc_context({"svg.hashsalt": "narrow"}):  # names of its own on the same page
            self.draw(NARROW).savefig(svg, format="svg", metadata={"Date": None})
        return _inline(svg.getvalue())


def _inline(svg: str) -> str:
    """Leave out XML's prologue; ink has the page's colour."""
    return svg[svg.index("<svg") :].replace(INK, "currentColor")
