"""The networks that a search for a front ends with: how long they are trained, and their runs."""

import logging
from collections.abc import Sequence

from omegaconf import DictConfig

from cifar_lightning.sweeps import executors, run
from cifar_lightning.sweeps.found import Found, Rungs
from cifar_lightning.sweeps.ladder import front
from cifar_lightning.sweeps.trial import composed
from cifar_lightning.system.formatting import counted

log = logging.getLogger(__name__)


def train_finally(cfg: DictConfig, found: Found, shared: Sequence[str]) -> None:
    """Train the fastest network of each target with several seeds, and measure them.

    Args:
        cfg: Of the search.
        found: By it.
        shared: Overrides of all its training runs.
    """
    now = found.read()
    chosen = _chosen(now, cfg.targets, counted(found.rungs[-1], "epoch"))
    mine = [number for number in chosen if found.study.owns(found.study.trials[number])]
    if len(mine) < len(chosen):  # where only the storage is shared
        log.info("final networks of other outputs: %d", len(chosen) - len(mine))
    benchmark = [f"benchmark.variants=[{cfg.variant}]", f"benchmark.threads=[{cfg.threads}]"]
    overrides = [
        [*shared, *found.overrides(number), f"epochs={epochs}", *benchmark, f"seed={seed}"]
        for number in mine
        for epochs in [_epochs(found, now, number, 60 * cfg.final_minutes)]
        for seed in cfg.final_seeds
    ]
    if not overrides:
        return
    log.info("final runs: %d", len(overrides))
    if (claim := found.study.claim("final")) is None:
        log.info("another process trains final runs; given again, this command trains the others")
        return
    with claim:
        run.run(composed(overrides), executors.LocalExecutor(1))


def _chosen(now: Rungs, targets: Sequence[float], epochs: str) -> list[int]:
    """Choose for each target the fastest network that reaches it after the last rung."""
    points, chosen = now.points[-1], dict[int, None]()
    for target in targets:
        reaching = [number for number in front(points) if points[number].accuracy >= target]
        if reaching:
            chosen[reaching[0]] = None
        else:
            log.info("no network reaches %g %% after %s", target, epochs)
    return [*chosen]


def _epochs(found: Found, now: Rungs, number: int, seconds: float) -> int:
    """Tell how many epochs fit, by the time of the longest run; decided once, and kept."""
    key = f"final {number}"
    known: int | None = found.study.optuna.user_attrs.get(key)
    if known is None:
        of_one = now.trained[-1][number].seconds / found.rungs[-1]
        known = max(found.rungs[-1], int(seconds / max(of_one, 1e-3)))
        found.study.optuna.set_user_attr(key, known)
    return known
