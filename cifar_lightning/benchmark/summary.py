"""What a benchmark says, as a table for people."""

from collections import Counter
from collections.abc import Iterable, Sequence

from cifar_lightning.benchmark.prepare import Failure
from cifar_lightning.runs.benchmark import BenchmarkRecord
from cifar_lightning.runs.candidate import Candidate, Role
from cifar_lightning.runs.latency import ENDED_BY, Relative
from cifar_lightning.runs.layout import draw_table, number

HEADER = (
    "Rank", "Candidate", "Variant", "Threads", "Lat. mean (ms)", "Relative latency",
    "95 % interval", "",
)  # fmt: skip

NOT_RANKED: dict[Role, str] = {
    "second_reference": "second reference",
    "floor": "what a call takes by itself",
}


def summary(record: BenchmarkRecord, failures: Sequence[Failure] = ()) -> str:
    """Draw the candidates of a benchmark, the fastest first, with its noise floor below.

    Those that can't be told apart have ranks that overlap: a rank counts those that are surely
    faster, with as many threads.

    Args:
        record: Of the benchmark.
        failures: Candidates without figures, which come last.
    """
    timings = {number: record.timing(number) for number in range(len(record.candidates))}
    ranked = sorted(record.ranked, key=lambda one: timings[one].relative.centre)
    names = _names([*record.candidates, *(failure.candidate for failure in failures)])
    rows = []
    for one in [*ranked, record.number("second_reference"), *record.floors]:
        candidate, timing = record.candidates[one], timings[one]
        rivals = record.rivals(one) if one in ranked else []
        marks = ["disturbed"] if timing.disturbed else []
        marks += [] if timing.converged or one in record.floors else ["not converged"]
        marks += ["few processes"] if record.ended == "few" else []
        marks += ["by its weights"] if candidate.by_weights else []
        marks += [candidate.contradiction] if candidate.contradiction else []
        marks += [] if one in ranked else [NOT_RANKED[candidate.role]]
        rank = 1 + sum(record.slower(one, other) for other in rivals)
        rows.append(
            (
                str(rank) if one in ranked else "-",
                names[candidate.label, candidate.run],
                candidate.variant,
                str(candidate.threads),
                number(timing.latency.mean_ms, 3),
                number(timing.relative.centre, 3),
                interval(timing.relative),
                ", ".join(marks),
            )
        )
    for failure in failures:
        candidate, reason = failure.candidate, f"{failure.status}: {failure.reason}"
        how = candidate.variant, str(candidate.threads)
        rows.append(("-", names[candidate.label, candidate.run], *how, "-", "-", "-", reason))
    drawn = draw_table(HEADER, rows, {0, 3, 4, 5})
    reference = timings[record.number("reference")].latency.mean_ms
    floor = Relative.of(record.noise_floor)
    rounds = timings[ranked[0] if ranked else 0].rounds
    gpu = f"\nGPU: {record.gpu}." if record.clock == "cuda_event" else ""
    return (
        f"{drawn}\nBenchmark {record.id} ended by {ENDED_BY[record.ended]} after {rounds} rounds "
        f"({record.protocol} protocol); the reference, ResNet-8, takes {reference:.3f} ms. "
        f"Noise floor: its double differs from it by {100 * (floor.centre - 1):+.2f} % "
        f"({interval(floor)}).{gpu}"
    )


def _names(candidates: Iterable[Candidate]) -> dict[tuple[str, str | None], str]:
    """Name each run by its ID; where several have it, by the end of their names, too."""
    runs = {(one.label, one.run) for one in candidates}
    taken = Counter(label for label, _ in runs)
    return {
        (label, run): f"{label}/{run.rpartition('-')[2]}" if run and taken[label] > 1 else label
        for label, run in runs
    }


def interval(relative: Relative) -> str:
    """Write an interval, or a dash where it is not bounded."""
    if relative.low is None or relative.high is None:
        return "-"
    return f"{relative.low:.3f} to {relative.high:.3f}"
