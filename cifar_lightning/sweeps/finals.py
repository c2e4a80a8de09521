"""The networks that a search for a front ends with: which are trained to the end, and how."""

import logging
import math
from collections.abc import Collection

from omegaconf import DictConfig

from cifar_lightning.runs.run import Run
from cifar_lightning.sweeps import executors, run
from cifar_lightning.sweeps.aims import Guess, aimed, guesses
from cifar_lightning.sweeps.found import Found
from cifar_lightning.sweeps.study import KILLED
from cifar_lightning.sweeps.trial import Shared, composed, train
from cifar_lightning.system.formatting import counted

log = logging.getLogger(__name__)


def train_finally(cfg: DictConfig, found: Found, shared: Shared, searched: Collection[str]) -> None:
    """Find the fastest network of each target, train it with all seeds, and measure them.

    Args:
        cfg: Of the search.
        found: By it.
        shared: Overrides of all its training runs.
        searched: The keys that the search sets.
    """
    if not cfg.targets or not cfg.final_seeds:
        return
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
            finals.overrides(number, *benchmark, f"seed={seed}")
            for number in chosen
            for seed in cfg.final_seeds
        ]
        if overrides:
            log.info("final runs: %d", len(overrides))
            run.run(composed(overrides), executors.LocalExecutor(1))


class _Finals:
    """Trains networks to the end, the fastest first, as far as it is needed."""

    def __init__(
        self, cfg: DictConfig, found: Found, shared: Shared, searched: Collection[str]
    ) -> None:
        self._cfg, self._found, self._shared, self._searched = cfg, found, shared, searched

    def fastest(self, target: float) -> int | None:
        """Train those that may reach a validation accuracy, until one does; None if none does."""
        while now := self._guesses():
            number = next(iter(aimed(now, target)), None)
            if number is None:
                break
            if now[number].complete:
                return number
            missed = [
                one.accuracy
                for one in now.values()
                if one.final is not None and math.isfinite(one.final)
            ]
            if not now[number].reaches(target) and max(missed, default=0.0) > now[number].accuracy:
                break  # one of which more was hoped has missed it already
            self._train(number, now[number], target)
        log.info("no network reaches %g %%", target)
        return None

    def overrides(self, number: int, *more: str) -> list[str]:
        """Give those of a network's final runs."""
        epochs = f"epochs={self._guesses()[number].epochs}"
        return self._shared.overrides(*self._found.overrides(number), epochs, *more)

    def _guesses(self) -> dict[int, Guess]:
        """Guess of the networks of these outputs: others have where their runs lie."""
        trials = self._found.study.trials
        found = guesses(self._found.read(), self._found.rungs, self._cfg)
        return {
            number: one for number, one in found.items() if self._found.study.owns(trials[number])
        }

    def _train(self, number: int, guess: Guess, target: float) -> None:
        """Train a network with the first seed; with the others if that one reached the target."""
        first, *others = self._cfg.final_seeds
        epochs = counted(guess.epochs, "epoch")
        drawn = " ".join(self._found.overrides(number))
        log.info("network %d, %s: to the end, for %g %%: %s", number, epochs, target, drawn)
        for seed in [first] if guess.final is None else others:
            ending = self._trained(number, guess.epochs, seed)
            if not isinstance(ending, Run):
                self._found.note_final(number, guess.epochs, seed, None)
                log.warning("network %d failed: %s", number, ending)
                return
            self._found.note_final(number, guess.epochs, seed, ending)
            log.info("network %d: %.2f %%, guessed %.2f", number, ending.val_acc, guess.accuracy)

    def _trained(self, number: int, epochs: int, seed: int) -> Run | str:
        """Train a network to the end with one seed; return its run, or why it can't be trained."""
        claim = self._found.study.claim(f"final-{number}-{epochs}-{seed}")
        assert claim is not None  # one process trains final runs
        with claim:
            if claim.hopeless:
                return KILLED
            with claim.work():
                ending = train(self.overrides(number, f"seed={seed}"), self._searched)
            claim.end()
        return ending if isinstance(ending, Run) else ending.message
