"""The networks that a search for a front ends with, and how long they are trained."""

import logging
from collections.abc import Sequence

from cifar_lightning.sweeps.found import Found
from cifar_lightning.sweeps.ladder import front
from cifar_lightning.system.formatting import counted

log = logging.getLogger(__name__)


def final_overrides(found: Found, targets: Sequence[float], seconds: float) -> list[list[str]]:
    """Choose for each target the fastest network that reaches it after the last rung.

    Args:
        found: By the search.
        targets: Validation accuracies in percent.
        seconds: How long each final run may take here.

    Returns:
        The overrides of each network, its epochs among them.
    """
    points, chosen = found.points[-1], dict[int, None]()
    for target in targets:
        reaching = [number for number in front(points) if points[number].accuracy >= target]
        if reaching:
            chosen[reaching[0]] = None
        else:
            epochs = counted(found.rungs[-1], "epoch")
            log.info("no network reaches %g %% after %s", target, epochs)
    return [
        [*found.overrides(number), f"epochs={_epochs(found, number, seconds)}"] for number in chosen
    ]


def _epochs(found: Found, number: int, seconds: float) -> int:
    """Tell how many epochs fit, by the time of the longest run; decided once, and kept."""
    key = f"final {number}"
    known: int | None = found.study.optuna.user_attrs.get(key)
    if known is None:
        of_one = found.trained[-1][number].seconds / found.rungs[-1]
        known = max(found.rungs[-1], int(seconds / max(of_one, 1e-3)))
        found.study.optuna.set_user_attr(key, known)
    return known
