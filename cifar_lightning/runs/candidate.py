"""A candidate: a network executed in one way with one number of threads."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta

from cifar_lightning.runs.identity import canonical
from cifar_lightning.runs.latency import Count, Fraction, Launches, Milliseconds, Seconds
from cifar_lightning.runs.run import Digest, Name, Versions

Role = Literal["candidate", "check", "reference", "double", "second_reference", "floor"]
REFERENCES: tuple[Role, ...] = ("reference", "double", "second_reference")
# How each part of `registry.PARTS` is made, as a version: results of two recipes are no one
# candidate. Raised when what a part does changes; 1 where it is not listed.
RECIPE_VERSIONS = {
    # 8 bits also between convolutions; the first and depthwise ones stay in fp32. That a few loud
    # values are cut off came later, and changes no file of a network that has none.
    "int8": 3,
    "aot": 2,  # weights are not frozen
    # Activations stay behind max-pools.
    **dict.fromkeys(("openvino", "openvino_bf16", "openvino_int8"), 2),
}

MOSTLY_DELEGATED = 0.9  # of a network's operations


def recipe(variant: str) -> dict[str, int]:
    """Tell the versions of a variant's parts, in whatever order they are written."""
    parts = [part for part in variant.split("+") if part != "fp32"] or ["fp32"]
    return {part: RECIPE_VERSIONS.get(part, 1) for part in parts}


@dataclass(frozen=True)
class Candidate:
    """A network executed in one way with one number of threads: what has a latency.

    Attributes:
        role: What it is for; all but ``candidate`` are in no ranking. A ``check`` is a candidate
            with another run's weights, timed to see whether weights change its latency; a ``floor``
            is hardly any network, timed to see what an engine's call takes by itself.
        label: For people.
        network: The option of ``conf/model``.
        model: Its node of the configuration.
        run: Whose weights were timed; None for random ones.
        weights: SHA-256 of their file.
        by_weights: Whether weights were found to change its latency: then it is this run's alone.
        recipe: Versions of the variant's parts.
        engines: Versions of what executed it.
        delegated: See `Measurement`.
        subnormals: Number of weights so small that some processors are slow with them.
        preparation_s: What happens once: compiling, capturing, exporting, calibrating.
        first_call_ms: Of the first call after that.
        peak_bytes: How far memory grew from before the network was built to its calls' peak.
        launches: On a GPU.
        flags: Every switch that was set.
        convolution_error: See `precision.convolution_error`.
        contradiction: In which precision it ran, where that is not its own.
        notes: What else the variant has to say.
    """

    role: Role
    label: str
    network: str
    model: dict[str, Any]
    variant: str
    recipe: dict[str, int]
    engines: Versions
    threads: Annotated[int, Meta(ge=1, le=2**20)]
    run: Name | None = None
    weights: Digest | None = None
    by_weights: bool = False
    size_bytes: Count | None = None
    delegated: Fraction | None = None
    subnormals: Count | None = None
    preparation_s: Seconds | None = None
    first_call_ms: Milliseconds | None = None
    peak_bytes: Count | None = None
    launches: Launches = field(default_factory=Launches)
    flags: dict[str, Any] = field(default_factory=dict)
    convolution_error: float | None = None
    contradiction: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Name what executes; see `candidate_key`."""
        key = candidate_key(self.model, self.variant, self.recipe, self.engines, self.threads)
        return _hex([key, self.weights]) if self.by_weights else key


def floor_of(variant: str) -> str:
    """Tell under which variant a variant's floor is timed: there are no BatchNorms to fold."""
    return "+".join(part for part in variant.split("+") if part != "fused") or "fp32"


def delegation_marks(delegated: float | None) -> list[str]:
    """Mark that an engine executes many operations one by one, outside its delegate."""
    few = delegated is not None and delegated < MOSTLY_DELEGATED
    return [f"{delegated:.0%} delegated"] if few else []


def candidate_key(
    model: Mapping[str, Any],
    variant: str,
    recipe: Mapping[str, int],
    engines: Mapping[str, str],
    threads: int,
) -> str:
    """Name a candidate in 16 hex digits; runs of one execute alike, whatever they learnt."""
    kept = {key: value for key, value in model.items() if value is not None}
    return _hex([canonical(kept, "model"), variant, recipe, engines, threads])


def _hex(said: object) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
