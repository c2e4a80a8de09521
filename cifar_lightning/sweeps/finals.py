"""The networks that a search for a front ends with: how long they are trained, and their runs."""

import logging
import math
from collections.abc import Collection, Sequence

from omegaconf import DictConfig

from cifar_lightning.runs.run import Run
from cifar_lightning.sweeps import executors, run
from cifar_lightning.sweeps.found import Found
from cifar_lightning.sweeps.ladder import front
from cifar_lightning.sweeps.trial import composed, train
from cifar_lightning.system.formatting import counted

log = logging.getLogger(__name__)

PERFECT = 1e-3  # percent of errors, of which no power can be taken any more


def train_finally(
    cfg: DictConfig, found: Found, shared: Sequence[str], searched: Collection[str]
) -> None:
    """Find the fastest network of each target, train it with all seeds, and measure them.

    Args:
        cfg: Of the search.
        found: By it.
        shared: Overrides of all its training runs.
        searched: The keys that the search sets.
    """
    if (claim := found.study.claim("final")) is None:
        log.info("another process trains final runs; given again, this command trains the others")
        return
    with claim:
        finals = _Finals(cfg, found, shared, searched)
        chosen = dict.fromkeys(
            number
            for target in sorted(cfg.targets)
            if (number := finals.fastest(target)) is not None
        )
        benchmark = [f"benchmark.variants=[{cfg.variant}]", f"benchmark.threads=[{cfg.threads}]"]
        overrides = [
            [*finals.overrides(number), *benchmark, f"seed={seed}"]
            for number in chosen
            for seed in cfg.final_seeds
        ]
        if overrides:
            log.info("final runs: %d", len(overrides))
            run.run(composed(overrides), executors.LocalExecutor(1))


class _Finals:
    """Trains the front's networks to the end, the fastest first, as far as it is needed."""

    def __init__(
        self, cfg: DictConfig, found: Found, shared: Sequence[str], searched: Collection[str]
    ) -> None:
        self._cfg, self._found, self._shared, self._searched = cfg, found, shared, searched
        self._now = found.read()
        on_front, trials = front(self._now.points[-1]), found.study.trials
        self._front = [number for number in on_front if found.study.owns(trials[number])]
        if len(self._front) < len(on_front):  # where only the storage is shared
            others = len(on_front) - len(self._front)
            log.info("networks of other outputs on the front: %d", others)
        self._reached: dict[int, float] = {}  # validation accuracy with the first seed
        self._optimism = 1.0  # how many times as many errors there were as had been guessed

    def fastest(self, target: float) -> int | None:
        """Train those that may reach a validation accuracy, until one does; None if none does."""
        for number in self._front:
            if number not in self._reached:
                if (guess := self._guess(number)) < target:
                    continue
                self._train(number, target, guess)
            if self._reached[number] >= target:
                return number
        log.info("no network reaches %g %%", target)
        return None

    def overrides(self, number: int) -> list[str]:
        """Give those of a network's final runs, but for the seed."""
        drawn = self._found.overrides(number)
        return [*self._shared, *drawn, f"epochs={self._epochs(number)}"]

    def _train(self, number: int, target: float, guess: float) -> None:
        log.info(
            "network %d, %s: to the end, for %g %%: %s",
            number,
            counted(self._epochs(number), "epoch"),
            target,
            " ".join(self._found.overrides(number)),
        )
        seed = f"seed={self._cfg.final_seeds[0]}"
        ending = train([*self.overrides(number), seed], self._searched)
        if not isinstance(ending, Run):
            log.warning("network %d failed: %s", number, ending.message)
            self._reached[number] = -math.inf
            return
        assert ending.val_acc is not None
        self._reached[number] = ending.val_acc
        guessed = max(PERFECT, 100 - guess) / self._optimism
        self._optimism = max(self._optimism, (100 - ending.val_acc) / guessed)
        log.info("network %d: %.2f %%, guessed %.2f", number, ending.val_acc, guess)

    def _guess(self, number: int) -> float:
        """Guess how accurate a network becomes.

        Its errors fall with a power of the epochs, as from the last rung but one to the last one;
        where that was too bold for others, it is so many times as many.
        """
        rungs, points = self._found.rungs, self._now.points
        errors = max(PERFECT, 100 - points[-1][number].accuracy)
        if len(rungs) > 1 and number in points[-2]:
            before = max(PERFECT, 100 - points[-2][number].accuracy)
            power = max(0.0, math.log(before / errors) / math.log(rungs[-1] / rungs[-2]))
            errors *= (rungs[-1] / self._epochs(number)) ** power
        return 100 - self._optimism * errors

    def _epochs(self, number: int) -> int:
        """Tell how many epochs fit, by the time of the longest run; decided once, and kept."""
        key, study, rung = f"final {number}", self._found.study.optuna, self._found.rungs[-1]
        known: int | None = study.user_attrs.get(key)
        if known is None:
            of_one = self._now.trained[-1][number].seconds / rung
            known = max(rung, int(60 * self._cfg.final_minutes / max(of_one, 1e-3)))
            study.set_user_attr(key, known)
        return known
