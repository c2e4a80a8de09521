"""The record of a benchmark: candidates timed in interleaved rounds, with every block."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from cifar_lightning.runs.identity import canonical
from cifar_lightning.runs.latency import Milliseconds
from cifar_lightning.runs.measurement import Environment
from cifar_lightning.runs.paired import Difference, difference
from cifar_lightning.runs.run import Count, Digest, Moment, Name, Record, Seconds, Versions
from cifar_lightning.system import environment

BENCHMARKS = "benchmarks"  # the folder in the outputs
PREEMPTED_ABOVE = 1.01  # wall time over processor time
Role = Literal["candidate", "reference", "double", "second_reference"]


@dataclass(frozen=True)
class Block:
    """Some calls of one candidate, one after the other.

    Attributes:
        calls_ms: Each call's duration, those discarded at the beginning left out.
        wall_s: Of the whole block, by the wall clock.
        cpu_s: Processor time of the calling thread meanwhile.
        switches: How often another process took the core away from it.
        steal_s: Time that other virtual machines took from the cores meanwhile.
    """

    calls_ms: Annotated[list[Milliseconds], Meta(min_length=1)]
    wall_s: Seconds
    cpu_s: Seconds
    switches: Count = 0
    steal_s: Seconds = 0.0

    @property
    def mean_ms(self) -> float:
        return statistics.fmean(self.calls_ms)

    @property
    def preempted(self) -> bool:
        """Whether something else ran in its place, by its own evidence and never by its latency."""
        late = self.wall_s > PREEMPTED_ABOVE * self.cpu_s
        return late or self.switches > 0 or self.steal_s > 0


@dataclass(frozen=True)
class Round:
    """Each candidate's block once, in an order drawn for this round.

    Attributes:
        order: The candidates' numbers, as they were timed.
        blocks: By the candidates' numbers.
    """

    order: list[Count]
    blocks: list[Block]


@dataclass(frozen=True)
class Session:
    """What one process measured.

    Attributes:
        build_order: The candidates' numbers, in the order in which they were built.
        ended: Why it stopped: ``converged``, ``time`` (was up) or ``stopped`` (by a signal).
    """

    build_order: list[Count]
    rounds: list[Round]
    ended: Literal["converged", "time", "stopped"]


@dataclass(frozen=True)
class Candidate:
    """A network executed in one way with one number of threads: what has a latency.

    Attributes:
        role: What it is for; all but ``candidate`` are in no ranking.
        label: For people.
        network: The option of ``conf/model``.
        model: Its node of the configuration.
        run: Whose weights were timed; None for random ones.
        weights: SHA-256 of their file.
        recipe: Versions of the variant's parts.
        engines: Versions of what executed it.
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
    size_bytes: Count | None = None
    preparation_s: Seconds | None = None
    first_call_ms: Milliseconds | None = None
    peak_bytes: Count | None = None

    @property
    def key(self) -> str:
        """Name what executes; see `candidate_key`."""
        return candidate_key(self.model, self.variant, self.recipe, self.engines, self.threads)


def candidate_key(
    model: Mapping[str, Any],
    variant: str,
    recipe: Mapping[str, int],
    engines: Mapping[str, str],
    threads: int,
) -> str:
    """Name a candidate in 16 hex digits; runs of one execute alike, whatever they learnt."""
    said = [canonical(model, "model"), variant, recipe, engines, threads]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class BenchmarkRecord(Record):
    """One benchmark.

    Attributes:
        id: Names its file.
        candidates: In the order asked for; the three references are among them.
        sessions: One a process.
    """

    id: Name
    started: Moment
    protocol: Annotated[str, Meta(pattern=r"^(full|quick)\Z")]
    protocol_version: Annotated[int, Meta(ge=1, le=2**20)]
    device: str
    hardware: str
    clock: Literal["cuda_event", "perf_counter"]
    code: environment.Code
    environment: Environment
    candidates: list[Candidate]
    sessions: list[Session] = field(repr=False)

    FREE: ClassVar[frozenset[str]] = frozenset({"sessions"})

    @classmethod
    def path(cls, outputs: Path, id: str) -> Path:
        return outputs / BENCHMARKS / f"{id}.json"

    def number(self, role: Role) -> int:
        """Tell the number of one of the references."""
        return [one.role for one in self.candidates].index(role)

    def means_ms(self, number: int, session: Session) -> list[float]:
        """List a candidate's block means, one a round."""
        return [one.blocks[number].mean_ms for one in session.rounds]

    def difference(self, first: int, second: int, z: float | None = None) -> Difference:
        """Tell how much slower one candidate is than another, by their numbers."""
        (session,) = self.sessions  # NOTE several processes follow
        return difference(self.means_ms(first, session), self.means_ms(second, session), z)

    def relative(self, number: int, z: float | None = None) -> Difference:
        """Tell how much slower a candidate is than the reference."""
        return self.difference(number, self.number("reference"), z)

    @property
    def noise_floor(self) -> Difference:
        """What is called a difference here where there is none: the reference's double."""
        return self.relative(self.number("double"))
