"""When a measurement starts counting and when it stops."""

from dataclasses import dataclass

PROTOCOL_VERSION = 1


@dataclass(frozen=True)
class Protocol:
    """When to start counting and when to stop.

    Attributes:
        name: Stands in the table.
        warmup_samples: At least so many calls before the first that counts.
        warmup_s: At least so long.
        warmup_max_s: At most so long, even if two successive medians of 50 still differ.
        warmup_tolerance: Relative difference of those medians that ends the warm-up.
        samples: At least so many samples.
        sampling_s: At least so long.
        sampling_max_s: At most so long, even if the intervals are still wider than they should be.
        mean_tolerance: Half width of the mean's confidence interval over the mean.
        p95_tolerance: The same for p95.
    """

    name: str
    warmup_samples: int = 50
    warmup_s: float = 1.0
    warmup_max_s: float = 10.0
    warmup_tolerance: float = 0.01
    samples: int = 1000
    sampling_s: float = 2.0
    sampling_max_s: float = 30.0
    mean_tolerance: float = 0.005
    p95_tolerance: float = 0.02


PROTOCOLS = {
    "full": Protocol("full"),
    # For tests and demonstrations: rough, and says so in the table.
    "quick": Protocol(
        "quick",
        warmup_s=0.1,
        warmup_max_s=1.0,
        samples=200,
        sampling_s=0.2,
        sampling_max_s=2.0,
        mean_tolerance=0.05,
        p95_tolerance=0.10,
    ),
}
