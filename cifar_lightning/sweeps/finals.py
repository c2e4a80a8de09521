"""The networks that a search for a front ends with: which are trained to the end, and how."""

import logging
import math
from collections.abc import Collection
from dataclasses import dataclass

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

    Of several processes each trains other runs, and the first one measures.

    Args:
        cfg: Of the search.
        found: By it.
        shared: Overrides of all its training runs.
        searched: The keys that the search sets.
    """
    if not cfg.targets or not cfg.final_seeds:
        return
    finals = _Finals(cfg, found, shared, searched)
    benchmark = [f"benchmark.variants=[{cfg.variant}]", f"benchmark.threads=[{cfg.threads}]"]
    overrides = [
        finals.overrides(number, epochs, *benchmark, f"seed={seed}")
        for number, epochs in finals.train().items()
        for seed in cfg.final_seeds
    ]
    if not overrides:
        return
    with found.study.awaited("final"):  # what another process has measured is shown alone
        log.info("final runs: %d", len(overrides))
        run.run(composed(overrides), executors.LocalExecutor(1))


@dataclass(frozen=True)
class _Needed:
    """A final run that a target needs.

    Attributes:
        target: Validation accuracy in percent.
        number: Of the network.
        seed: Of the run.
        guess: What the network is guessed to have.
    """

    target: float
    number: int
    seed: int
    guess: Guess

    @property
    def work(self) -> str:
        return f"final-{self.number}-{self.guess.epochs}-{self.seed}"


class _Finals:
    """Trains networks to the end, the fastest first, as far as it is needed."""

    def __init__(
        self, cfg: DictConfig, found: Found, shared: Shared, searched: Collection[str]
    ) -> None:
        self._cfg, self._found, self._shared, self._searched = cfg, found, shared, searched

    def train(self) -> dict[int, int]:
        """Train those that may reach a target, until one does.

        What another process trains is waited for where nothing else is needed.

        Returns:
            The targets' networks, with the epochs of their final runs.
        """
        while True:
            now = self._guesses()
            best = {target: self._best(now, target) for target in sorted(self._cfg.targets)}
            needed = [
                _Needed(target, number, seed, now[number])
                for target, number in best.items()
                if number is not None
                for seed in self._seeds_needed(number, now[number])
            ]
            if not needed:
                break
            if not any(map(self._train, needed)):
                self._found.study.wait_for(needed[0].work)
        for target, number in best.items():
            if number is None:
                log.info("no network reaches %g %%", target)
        return {number: now[number].epochs for number in best.values() if number is not None}

    def overrides(self, number: int, epochs: int, *more: str) -> list[str]:
        """Give those of a network's final runs."""
        return self._shared.overrides(*self._found.overrides(number), f"epochs={epochs}", *more)

    def _guesses(self) -> dict[int, Guess]:
        """Guess of the networks of these outputs: others have where their runs lie."""
        trials = self._found.study.trials
        found = guesses(self._found.read(), self._found.rungs, self._cfg)
        return {
            number: one for number, one in found.items() if self._found.study.owns(trials[number])
        }

    def _best(self, now: dict[int, Guess], target: float) -> int | None:
        """Tell which network a target has, or is to be trained for it; None if none reaches it."""
        number = next(iter(aimed(now, target)), None)
        if number is None or now[number].complete or now[number].reaches(target):
            return number
        missed = [
            one.accuracy
            for one in now.values()
            if one.final is not None and math.isfinite(one.final)
        ]
        # One of which more was hoped may have missed it already.
        return None if max(missed, default=0.0) > now[number].accuracy else number

    def _seeds_needed(self, number: int, guess: Guess) -> list[int]:
        """Tell which of a network's final runs are needed: the first; the others if it reached."""
        if guess.complete:
            return []
        there = self._there(number, guess.epochs)
        missing = [seed for seed in self._cfg.final_seeds if seed not in there]
        return missing[:1] if guess.final is None else missing

    def _there(self, number: int, epochs: int) -> Collection[int]:
        return self._found.read().finals.get((number, epochs), {})

    def _train(self, needed: _Needed) -> bool:
        """Train a network to the end with one seed; False if another process does."""
        number, seed, guess = needed.number, needed.seed, needed.guess
        if (claim := self._found.study.claim(needed.work)) is None:
            return False
        with claim:
            if seed not in self._there(number, guess.epochs):  # nobody has ended it meanwhile
                epochs = counted(guess.epochs, "epoch")
                drawn = " ".join(self._found.overrides(number))
                what = f"{epochs}, seed {seed}: to the end, for {needed.target:g} %: {drawn}"
                log.info("network %d, %s", number, what)
                ending: Run | str = KILLED
                if not claim.hopeless:
                    with claim.work():
                        own = self.overrides(number, guess.epochs, f"seed={seed}")
                        trained = train(own, self._searched)
                    ending = trained if isinstance(trained, Run) else trained.message
                self._note(needed, ending)
            claim.end()
        return True

    def _note(self, needed: _Needed, ending: Run | str) -> None:
        number, guess = needed.number, needed.guess
        trained = ending if isinstance(ending, Run) else None
        self._found.note_final(number, guess.epochs, needed.seed, trained)
        if trained is None:
            log.warning("network %d failed: %s", number, ending)
        else:
            log.info("network %d: %.2f %%, guessed %.2f", number, trained.val_acc, guess.accuracy)
