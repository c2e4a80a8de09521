"""How each part of a variant is made, as a version: results of two recipes are no one candidate.

Light on imports, so that a finished run can be recognised without torch.
"""

from __future__ import annotations

# Of each part of `registry.PARTS`, raised when what it does changes; 1 where it is not listed.
VERSIONS = {
    "int8": 2,  # since the first two convolutions stay in fp32
}


def recipe(variant: str) -> dict[str, int]:
    """Tell the versions of a variant's parts, in whatever order they are written."""
    parts = [part for part in variant.split("+") if part != "fp32"] or ["fp32"]
    return {part: VERSIONS.get(part, 1) for part in parts}
