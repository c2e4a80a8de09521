"""What tells how long a call takes by itself."""

from collections.abc import Iterable, Sequence

from cifar_lightning.benchmark.candidates import NUM_CLASSES, Source
from cifar_lightning.runs.candidate import Candidate, floor_of, recipe
from cifar_lightning.variants import registry


def floors(groups: Iterable[Sequence[Source]]) -> list[Source]:
    """Make a floor for each engine and number of threads of what is ranked."""
    executed = dict.fromkeys(
        (floor_of(one.variant), one.threads)
        for one in (group[0].candidate for group in groups)
        if one.role == "candidate"
    )
    model = {"num_classes": NUM_CLASSES}
    return [
        Source(
            Candidate(
                role="floor",
                label="floor",
                network="floor",
                model=model,
                variant=variant,
                recipe=recipe(variant),
                engines=registry.engines(variant),
                threads=threads,
            )
        )
        for variant, threads in executed
    ]
