"""What colours and shapes mean, in every plot and table of a report: networks and variants."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from matplotlib.colors import hsv_to_rgb, to_hex

from cifar_lightning.comparison.entry import Entry


class Shape(NamedTuple):
    """A marker, as matplotlib and plotly name it, and as a character."""

    matplotlib: str
    plotly: str
    text: str


SHAPES = (
    Shape("o", "circle", "●"),
    Shape("s", "square", "■"),
    Shape("D", "diamond", "◆"),
    Shape("^", "triangle-up", "▲"),
    Shape("v", "triangle-down", "▼"),
    Shape("P", "cross", "✚"),
    Shape("X", "x", "✖"),
    Shape("*", "star", "★"),
    Shape("p", "pentagon", "⬟"),
    Shape("h", "hexagon", "⬢"),
    Shape("<", "triangle-left", "◀"),
    Shape(">", "triangle-right", "▶"),
)
# Visible on white and on black; the first six, which are Paul Tol's bright scheme, are distinct to
# the colour-blind, too.
COLORS = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8833", "#44aa99",
    "#9966dd", "#996633", "#99cc44", "#ff99cc",
)  # fmt: skip


@dataclass(frozen=True)
class Marks:
    """Gives each network a colour and each variant a shape."""

    networks: Sequence[str]
    variants: Sequence[str]

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Self:
        """Mark all entries of a report."""
        entries = list(entries)
        variants = {entry.variant for entry in entries}
        return cls(
            sorted({entry.network for entry in entries}),
            sorted(variants, key=lambda variant: (variant != "fp32", variant)),
        )

    def color(self, network: str) -> str:
        """No two networks have the same one, however many there are."""
        number, count = self.networks.index(network), len(self.networks)
        if count > len(COLORS):
            return str(to_hex(tuple(hsv_to_rgb((number / count, 0.6, 0.8)))))
        return COLORS[number]

    def shape(self, variant: str) -> Shape:
        """Beyond twelve variants they repeat."""
        return SHAPES[self.variants.index(variant) % len(SHAPES)]
