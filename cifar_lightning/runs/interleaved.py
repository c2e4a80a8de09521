"""Candidates timed in interleaved rounds: what their blocks' means say of one beside another."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from msgspec import Meta

from cifar_lightning.config.protocols import PROTOCOLS
from cifar_lightning.runs.blocks import Block
from cifar_lightning.runs.candidate import REFERENCES, Candidate, Role
from cifar_lightning.runs.environment import Environment
from cifar_lightning.runs.folder import BENCHMARKS
from cifar_lightning.runs.latency import Ended
from cifar_lightning.runs.paired import Difference, difference_of, one_sided
from cifar_lightning.runs.run import Moment, Name, Record
from cifar_lightning.system import environment
from cifar_lightning.system.environment import DeviceState

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ERROR = 0.05  # how often a verdict may call something slower that is not
# Two processes or one say too little of how processes differ: one told equal networks apart in a
# quarter of simulated benchmarks. Before protocol version 3 there was never more than one.
FEWEST, SEVERAL_SINCE = 3, 3


@dataclass(frozen=True)
class BenchmarkHead(Record):
    """What a benchmark was of, without its blocks: quick to read.

    Attributes:
        id: Names its file.
        candidates: In the order asked for; the three references are among them.
        state: Of the device ``before`` and ``after``; see `contention.device_state`.
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
    state: Mapping[Literal["before", "after"], DeviceState]

    # A hundred fast candidates, in as many rounds as their budget allows, have 20 million calls.
    MAX_BYTES: ClassVar[int] = 512 * 2**20

    def check(self) -> None:
        roles = [one.role for one in self.candidates]
        if any(roles.count(role) != 1 for role in REFERENCES):
            raise ValueError(f"candidates: needs one of each of {', '.join(REFERENCES)}")

    @classmethod
    def path(cls, outputs: Path, id: str) -> Path:
        return outputs / BENCHMARKS / f"{id}.json"

    def number(self, role: Role) -> int:
        """Tell the number of one of the references."""
        return [one.role for one in self.candidates].index(role)

    @property
    def ranked(self) -> list[int]:
        """The numbers of what is ranked."""
        return [number for number, one in enumerate(self.candidates) if one.role == "candidate"]

    @property
    def floors(self) -> list[int]:
        """The numbers of what tells how long an engine's call takes by itself."""
        return [number for number, one in enumerate(self.candidates) if one.role == "floor"]


@dataclass(frozen=True)
class Interleaved(BenchmarkHead):
    """What tells candidates apart, whether their calls are in the memory or not."""

    if TYPE_CHECKING:  # a record computes these, and `BenchmarkMeans` holds them as fields

        @property
        def means(self) -> "list[NDArray[np.float64]]":
            """Means of the blocks in milliseconds, (rounds, candidates), one a process."""

        @property
        def ended(self) -> Ended:
            """Why it stopped; of several processes the one that says least."""

        @property
        def has_calls(self) -> bool:
            """Whether blocks hold all their calls, and not only means as in small copies."""

    def blocks(self, number: int) -> Iterator[Block]:
        """Yield a candidate's blocks, in all processes."""
        raise NotImplementedError

    @property
    def fewest(self) -> int:
        """The fewest processes that decide anything by its protocol."""
        several = self.protocol_version >= SEVERAL_SINCE
        return min(FEWEST, PROTOCOLS[self.protocol].processes) if several else 1

    @property
    def rounds(self) -> int:
        """Of all processes."""
        return sum(len(means) for means in self.means)

    def difference(self, first: int, second: int, z: float | None = None) -> Difference:
        """Tell how much slower one candidate is than another, by their numbers.

        Args:
            first: The one.
            second: The other.
            z: Normal quantile of the interval's ends; None is that of 95 %.
        """
        return difference_of([one[:, first] - one[:, second] for one in self.logs], z)

    @property
    def counted(self) -> "list[NDArray[np.float64]]":
        """Means of the processes that count.

        Each counts as much as another. So the last one does not if it was stopped before it had
        half as many rounds as each of the others.
        """
        *others, last = self.means
        cut = self.ended == "stopped" and bool(others)
        return others if cut and 2 * len(last) < min(map(len, others)) else self.means

    @cached_property
    def logs(self) -> "list[NDArray[np.float64]]":
        """Logarithms of the means of the processes that count."""
        import numpy as np  # reading records needs none of it

        return [np.log(means) for means in self.counted]

    def relative(self, number: int, z: float | None = None) -> Difference:
        """Tell how much slower a candidate is than the reference."""
        return self.difference(number, self.number("reference"), z)

    def rivals(self, number: int) -> list[int]:
        """List the other candidates that are ranked with one: those with as many threads."""
        threads = self.candidates[number].threads
        return [n for n in self.ranked if n != number and self.candidates[n].threads == threads]

    def slower(self, first: int, second: int) -> bool:
        """Tell whether one candidate is slower than another, by the rule of a verdict.

        Out of all comparisons with the fastest, any is wrong in one of twenty benchmarks at most.
        """
        alpha = ERROR / max(1, len(self.rivals(first)))
        return self.difference(first, second, one_sided(alpha)).slower

    def differ(self, first: int, second: int) -> bool:
        """Tell whether one of two candidates is slower."""
        return self.slower(first, second) or self.slower(second, first)

    def tells_apart(self, first: str, second: str) -> bool:
        """Tell whether it says so of two ranked candidates, by their keys."""
        numbers = {self.candidates[number].key: number for number in self.ranked}
        return {first, second} <= {*numbers} and self.differ(numbers[first], numbers[second])

    @cached_property
    def second_reference(self) -> float:
        """How much slower the second reference is than the first, as a logarithm."""
        return self.relative(self.number("second_reference")).centre

    @property
    def noise_floor(self) -> Difference:
        """What is called a difference here where there is none: the reference's double."""
        return self.relative(self.number("double"))
