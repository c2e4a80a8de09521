"""The record of a benchmark: candidates timed in interleaved rounds, with every block."""

import statistics
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from cifar_lightning.config.protocols import PROTOCOL_VERSION, PROTOCOLS
from cifar_lightning.runs.blocks import Block, Session, Timing
from cifar_lightning.runs.candidate import REFERENCES, Candidate, Role
from cifar_lightning.runs.environment import Environment
from cifar_lightning.runs.folder import BENCHMARKS
from cifar_lightning.runs.gpu import GPUActivity
from cifar_lightning.runs.latency import Ended, LatencyStats, Relative
from cifar_lightning.runs.paired import (
    Difference,
    difference,
    one_sided,
    over_processes,
    two_sided,
)
from cifar_lightning.runs.run import Moment, Name, Record
from cifar_lightning.system import environment, untrusted
from cifar_lightning.system.environment import DeviceState
from cifar_lightning.system.files import finished_files

ERROR = 0.05  # how often a verdict may call something slower that is not


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


@dataclass(frozen=True)
class BenchmarkRecord(BenchmarkHead):
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
        """Yield a candidate's blocks, in all processes."""
        for session in self.sessions:
            for one in session.rounds:
                yield one.blocks[number]

    def difference(self, first: int, second: int, z: float | None = None) -> Difference:
        """Tell how much slower one candidate is than another, by their numbers.

        Args:
            first: The one.
            second: The other.
            z: Normal quantile of the interval's ends; None is that of 95 %.
        """
        found = [self._within(first, second, session, z) for session in self.sessions]
        if len(found) == 1:
            return found[0]
        # What processes differ by is pooled over all that are ranked.
        others = [number for number in self.ranked if number not in (first, second)]
        groups = [
            [self._within(number, second, session, z).centre for session in self.sessions]
            for number in others
        ]
        return over_processes(found, groups, two_sided() if z is None else z)

    def _within(self, first: int, second: int, session: Session, z: float | None) -> Difference:
        return difference(session.means_ms(first), session.means_ms(second), z)

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

    @property
    def noise_floor(self) -> Difference:
        """What is called a difference here where there is none: the reference's double."""
        return self.relative(self.number("double"))

    @property
    def ended(self) -> Ended:
        """Why it stopped; of several processes the one that says least."""
        endings = {session.ended for session in self.sessions}
        order: tuple[Ended, ...] = ("stopped", "time", "converged")
        return next(one for one in order if one in endings)

    def converged(self, number: int) -> bool:
        """Tell whether a candidate got what the protocol asks for, whatever others lacked."""
        protocol, reference = PROTOCOLS[self.protocol], self.number("reference")
        return all(
            self._within(number, reference, one, None).rounds_needed(one.calls(number), protocol)
            <= len(one.rounds)
            for one in self.sessions
        )

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


def measured_before(
    outputs: Path, keys: Collection[str], hardware: str, protocol: str
) -> dict[str, BenchmarkRecord]:
    """Find the latest benchmark that has timed each of some candidates to its end.

    Args:
        outputs: Where to look.
        keys: The candidates', which tell engines, recipes and threads apart.
        hardware: The device's.
        protocol: That is asked for; ``full`` does, too.

    Returns:
        Records by the candidates' keys.
    """
    found: dict[str, BenchmarkRecord] = {}
    for path in reversed(finished_files(outputs / BENCHMARKS, ".json")):
        try:
            head = BenchmarkHead.read(path)
            new = {head.candidates[number].key for number in head.ranked} & {*keys} - {*found}
            of_this = head.protocol_version == PROTOCOL_VERSION and head.hardware == hardware
            if new and of_this and head.protocol in (protocol, "full"):
                record = BenchmarkRecord.read(path)
                if record.ended != "stopped":
                    found |= dict.fromkeys(new, record)
        except (OSError, ValueError):
            continue  # damaged, or removed meanwhile: it is timed again
    return found
