"""When a measurement starts counting and when it stops."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Self

PROTOCOL_VERSION = 3
BENCH = "bench"  # that of an export's bench.py, which is ranked with no other
MIN_ROUNDS = 30  # below that a 95 % interval of order statistics is hardly bounded


@dataclass(frozen=True)
class Protocol:
    """When to start counting and when to stop.

    Attributes:
        name: Stands in the table.
        warmup_block: The warm-up compares medians of so many calls.
        warmup_s: At least so long.
        warmup_max_s: At most so long, even if two successive medians still differ.
        warmup_tolerance: Relative difference of those medians that ends the warm-up.
        block_s: So long takes a block, on average.
        calls: At least so many of each candidate.
        independent_rounds: At least so many, where neighbouring ones that are alike count less.
        tolerance: How far the interval of a relative latency may reach, over its centre.
        certain: Of so large a part of the candidates before it stops.
        budget_s: In rounds, for each candidate, even if intervals are still wider.
        processes: Fresh ones that share the rounds; 1 is the one that asks.
    """

    name: str
    warmup_block: int = 50
    warmup_s: float = 1.0
    warmup_max_s: float = 10.0
    warmup_tolerance: float = 0.01
    block_s: float = 0.02
    calls: int = 200
    independent_rounds: int = 100
    tolerance: float = 0.01
    certain: float = 1.0
    # About 900 rounds of light networks. 126 are enough on a quiet machine and 220 beside a busy
    # program; where speeds come and go for seconds, eight rounds say as much as one independent.
    budget_s: float = 20.0
    # Together they say by how much they differ: Student's quantile of 8 is 3.0 (99 %, one-sided).
    processes: int = 8

    def in_each(self, processes: int) -> Self:
        """Share what is asked for among processes.

        Most candidates have to be as certain in each as makes them certain over all. For the others
        more rounds help little: they differ between processes, or from minute to minute.
        Nor do two medians have to agree before rounds begin. On a quiet machine that is 30 rounds,
        and on a noisy one as many as the budget has (docs/latency.md).
        """
        if processes == 1:
            return self
        enough = processes * MIN_ROUNDS >= self.independent_rounds
        return replace(
            self,
            warmup_block=self.warmup_block // 2,
            warmup_s=self.warmup_s / processes,
            warmup_max_s=self.warmup_max_s / processes,
            warmup_tolerance=math.inf,
            calls=math.ceil(self.calls / processes),
            independent_rounds=0 if enough else math.ceil(self.independent_rounds / processes),
            tolerance=self.tolerance * math.sqrt(processes),
            certain=0.75,
            budget_s=self.budget_s / processes,
        )

    @property
    def looks(self) -> Iterator[int]:
        """Numbers of rounds after which it looks whether to stop: each look may err, so few."""
        return (round(MIN_ROUNDS * (4 / 3) ** step) for step in count())

    @property
    def expected_rounds(self) -> int:
        """How many it takes where all is quiet."""
        return next(rounds for rounds in self.looks if rounds >= self.independent_rounds)


PROTOCOLS = {
    "full": Protocol("full"),
    # For tests and demonstrations: rough, and says so in the table.
    "quick": Protocol(
        "quick",
        warmup_s=0.1,
        warmup_max_s=1.0,
        block_s=0.005,
        calls=MIN_ROUNDS,
        independent_rounds=MIN_ROUNDS,
        tolerance=0.05,
        budget_s=2.0,
        processes=1,
    ),
}
