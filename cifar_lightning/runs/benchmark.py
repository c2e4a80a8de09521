"""The record of a benchmark, with every block, and what of it is kept in the memory."""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from msgspec import Meta

from cifar_lightning.config.protocols import PROTOCOLS
from cifar_lightning.runs.blocks import Block, Session, Timing
from cifar_lightning.runs.candidate import floor_of
from cifar_lightning.runs.gpu import GPUActivity
from cifar_lightning.runs.interleaved import BenchmarkHead, Interleaved
from cifar_lightning.runs.latency import Ended, LatencyStats, Relative
from cifar_lightning.system import untrusted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class BenchmarkRecord(Interleaved):
    """One benchmark.

    Attributes:
        sessions: One a process.
        means_only: Whether each block holds the mean of its calls in their place, as in small
            copies.
    """

    sessions: Annotated[list[Session], Meta(min_length=1)] = field(repr=False)
    means_only: bool = False

    FREE: ClassVar[frozenset[str]] = frozenset({"sessions"})

    def check(self) -> None:
        super().check()
        everyone = list(range(len(self.candidates)))
        for session in self.sessions:
            for name, order in (
                ("build_order", session.build_order),
                *(("order", one.order) for one in session.rounds),
            ):
                if sorted(order) != everyone:
                    raise ValueError(f"sessions: {name}: not every candidate once")
            if any(len(one.blocks) != len(everyone) for one in session.rounds):
                raise ValueError("sessions: blocks: not one a candidate")

    def to_json(self) -> str:
        return untrusted.encode(self, indent=None)

    def blocks(self, number: int) -> Iterator[Block]:
        for session in self.sessions:
            for one in session.rounds:
                yield one.blocks[number]

    @cached_property
    def means(self) -> "list[NDArray[np.float64]]":
        import numpy as np  # reading records needs none of it

        numbers = range(len(self.candidates))
        return [
            np.array([session.means_ms(number) for number in numbers]).T
            for session in self.sessions
        ]

    def floor_ms(self, number: int) -> float | None:
        """Tell how long a call takes by itself in a candidate's engine, if that was timed."""
        of = self.candidates[number]
        how = floor_of(of.variant), of.threads
        for floor in self.floors:
            if (self.candidates[floor].variant, self.candidates[floor].threads) == how:
                return self.timing(floor).latency.mean_ms
        return None

    @property
    def has_calls(self) -> bool:
        return not self.means_only

    @property
    def ended(self) -> Ended:
        endings = {session.ended for session in self.sessions}
        if len(self.sessions) < self.fewest:
            endings.add("few")
        order: tuple[Ended, ...] = ("stopped", "few", "time", "converged")
        return next(one for one in order if one in endings)

    def converged(self, number: int) -> bool:
        """Tell whether a candidate got what the protocol asks for, whatever others lacked."""
        calls = sum(session.calls(number) for session in self.sessions)
        found = self.relative(number)
        return found.rounds_needed(calls, PROTOCOLS[self.protocol]) <= found.n

    @property
    def gpu(self) -> GPUActivity:
        """What the GPU did in the rounds."""
        if self.clock != "cuda_event":
            return GPUActivity()
        return GPUActivity.of([one.states for session in self.sessions for one in session.rounds])

    def timing(self, number: int) -> Timing:
        """Sum up a candidate's blocks."""
        blocks = [*self.blocks(number)]
        walls = [wall for block in blocks for wall in block.walls_ms]
        return Timing(
            latency=LatencyStats.from_samples([ms for block in blocks for ms in block.calls_ms]),
            relative=Relative.of(self.relative(number)),
            rounds=len(blocks),
            ended=self.ended,
            converged=self.converged(number),
            preempted=statistics.fmean(block.preempted for block in blocks),
            wall=LatencyStats.from_samples(walls) if walls else None,
            gpu=self.gpu,
        )


@dataclass(frozen=True)
class BenchmarkMeans(Interleaved):
    """A benchmark whose calls stay in its file until somebody asks for them."""

    means: "list[NDArray[np.float64]]" = field(repr=False)
    ended: Ended = field()
    has_calls: bool = field()
    whole: Callable[[], BenchmarkRecord] = field(repr=False)

    @classmethod
    def of(cls, record: BenchmarkRecord, whole: Callable[[], BenchmarkRecord]) -> Self:
        """Keep what tells candidates apart.

        Args:
            record: The benchmark.
            whole: Reads it again.
        """
        head = {one.name: getattr(record, one.name) for one in fields(BenchmarkHead)}
        return cls(
            **head, means=record.means, ended=record.ended, has_calls=record.has_calls, whole=whole
        )

    def blocks(self, number: int) -> Iterator[Block]:
        return self.whole().blocks(number)
