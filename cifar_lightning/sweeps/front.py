"""A search for networks that no other one is both faster and more accurate than.

Latency is known in seconds and before any training, accuracy costs minutes: networks are drawn and
measured in batches, those that are too slow are left, and the others trained by successive halving.
"""

import logging
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from cifar_lightning.benchmark.candidates import BenchmarkSpec
from cifar_lightning.config import rules
from cifar_lightning.errors import RunFailed, UserError, bad_value
from cifar_lightning.runs.candidate import recipe
from cifar_lightning.runs.run import Run
from cifar_lightning.sweeps import space as spaces
from cifar_lightning.sweeps.aims import Guess, guesses, in_turns
from cifar_lightning.sweeps.drawn import Draws, built
from cifar_lightning.sweeps.finals import train_finally
from cifar_lightning.sweeps.found import OVERRIDES, Found, Rungs
from cifar_lightning.sweeps.front_shown import draw, state, table
from cifar_lightning.sweeps.ladder import Rung, best_first, promotion
from cifar_lightning.sweeps.sampler import of_networks
from cifar_lightning.sweeps.space import Space
from cifar_lightning.sweeps.study import KILLED, Study
from cifar_lightning.sweeps.trial import Shared, checked, key_of, study_name, train
from cifar_lightning.sweeps.untrained import PROTOCOL
from cifar_lightning.system.cores import usable_cores
from cifar_lightning.system.devices import find_device, hardware_slug
from cifar_lightning.system.formatting import counted, duration
from cifar_lightning.variants import registry

log = logging.getLogger(__name__)

# Of a run's own keys those that the search decides.
NOT_GIVEN = {
    "epochs": "rungs and final_minutes say how long networks are trained",
    "rerun": "what is trained is not trained again",
    "test": "final runs are tested, and they alone",
}
KEYS = ["n_trials", "max_ms", "rungs", "hours", "targets", "final_minutes", "final_seeds"]


def search_front(cfg: DictConfig) -> None:
    """Search until ``n_trials`` networks are measured and the best of them trained.

    Args:
        cfg: Composed from ``conf/tune.yaml`` with ``search=front``.

    Raises:
        UserError: If the space or the configuration is wrong, or the variant can't be had here.
        RunFailed: If no network could be trained.
        Interrupted: If the user stopped it; the same command again goes on.
    """
    for key in ("variant", "threads"):
        if cfg[key] is None:
            raise bad_value(key, "null", "given: it says which latency counts")
    space = spaces.flatten_space(OmegaConf.to_container(cfg.space, resolve=True))  # type: ignore[arg-type]
    rules.check(OmegaConf.to_container(OmegaConf.masked_copy(cfg, KEYS)))  # type: ignore[arg-type]
    cfg.variant = registry.check(cfg.variant, "variant")
    cores = usable_cores()
    if not 1 <= cfg.threads <= cores:
        allowed = f"a number from 1 to {cores}, the cores that can be used here"
        raise bad_value("threads", cfg.threads, allowed)
    spec = BenchmarkSpec([cfg.variant], [cfg.threads], PROTOCOL)
    shared = Shared.of(cfg.base or ())
    for override in shared.given:
        if (key := key_of(override)) in NOT_GIVEN:
            raise UserError(f"{override}: must be left out: {NOT_GIVEN[key]}", key)
    base, ends = checked(shared, space, [f"epochs={epochs}" for epochs in cfg.rungs])
    if len({built(job.config["model"]) for job in ends}) == 1:
        raise bad_value("space", spaces.as_plain(space), "more than one network")
    device = find_device(str(base.config["trainer"].get("accelerator", "auto")))
    # What latencies depend on, as a network is timed once and never again.
    engines = {"torch": torch.__version__} | registry.engines(cfg.variant)
    where = [hardware_slug(device), cfg.variant, cfg.threads, recipe(cfg.variant), engines]
    name = study_name(base, spaces.as_plain(space), *where, [*cfg.rungs])
    outputs, sampler = Path(base.config["outputs"]), partial(of_networks, base.config["seed"])
    with Study(outputs, name, ["minimize", "maximize"], cfg.storage, sampler) as study:
        found = Found(study, [*cfg.rungs])
        draws = Draws(cfg, found, space, shared, spec, device)
        _Search(cfg, found, draws, shared, space, hardware_slug(device)).run()


class _Search:
    def __init__(
        self,
        cfg: DictConfig,
        found: Found,
        draws: Draws,
        shared: Shared,
        space: Space,
        hardware: str,
    ) -> None:
        self.cfg, self.found, self.draws, self.shared, self.space = cfg, found, draws, shared, space
        self.study, self.rungs, self.hardware = found.study, found.rungs, hardware
        self.waiting: list[Any] = []  # trials measured, and not trained yet

    def run(self) -> None:
        try:
            log.info("study %s: %s", self.study.name, self._state(self.found.read()))
            self._train_all()  # final runs are chosen by what all processes have found
            self._tell()
            train_finally(self.cfg, self.found, self.shared, self.space)
        finally:  # when it is stopped, too
            if any(self.found.read().points):
                where = self.hardware, self.cfg.variant, self.cfg.threads
                log.info("%s", draw(self.found, *where))

    def _train_all(self) -> None:
        """Train until nothing is left, here or elsewhere."""
        while True:
            before = self.study.elsewhere
            if self._train_rungs():
                continue
            # Looked at twice: between two networks a process is at none.
            if not before and not self.study.elsewhere:
                return
            if before:
                log.info("other processes are at work on %s", counted(len(before), "network"))
                self.study.wait_for(before[0])

    def _train_rungs(self) -> bool:
        """Train what there is to train here; tell whether there was anything."""
        trained, now = False, self.found.read()
        while now.seconds < 3600 * self.cfg.hours and self._step(now):
            trained, now = True, self.found.read()
            log.info("%s", self._state(now))
        self.study.release()
        return trained

    def _tell(self) -> None:
        """Show what was found, or raise `RunFailed` if nothing was."""
        now = self.found.read()
        if any(now.points):
            log.info("\n%s", table(self.found))
        else:
            slow = len(now.too_slow(self.cfg.max_ms))
            why = f"; {slow} are above max_ms={self.cfg.max_ms:g}" if slow else ""
            raise RunFailed(f"{self.study.name}: no network could be trained{why}")

    def _step(self, now: Rungs) -> bool:
        """Train or measure one thing; False if nothing is left to do here."""
        if not self.waiting:
            self.waiting = self.draws.next_batch()
        if self._promote(now, last=not self.waiting):
            return True
        if not self.waiting:
            return any(self._promoted(0, number) for number in self._left_out(now))
        trial = self.waiting.pop(0)
        with self.study.claims[trial.number].work():
            ending = self._train(trial.number, trial.user_attrs[OVERRIDES], 0)
        latency = math.log(self.found.latency(trial.number).relative)
        if isinstance(ending, Run):
            assert ending.val_acc is not None
            self.study.tell(trial, latency, ending.val_acc)
        else:
            self.study.fail(trial, ending, ending)
        return True

    def _train(self, number: int, overrides: Sequence[str], place: int) -> Run | str:
        """Train a trial for a rung; return its run, or why it can't be trained."""
        epochs = self.rungs[place]
        log.info("network %d, %s: %s", number, counted(epochs, "epoch"), " ".join(overrides))
        begin = time.monotonic()
        own = [*overrides, f"epochs={epochs}", "test=false"]  # validation alone steers
        ending = train(self.shared.overrides(*own), self.space)
        if isinstance(ending, Run):
            self.found.note_trained(number, place, ending)
            return ending
        log.warning("network %d failed: %s", number, ending.message)
        self.found.note_failed(number, place, ending.message, time.monotonic() - begin)
        return ending.message

    def _promote(self, now: Rungs, last: bool) -> bool:
        """Train the trial that most deserves it for its next rung; False if none does."""
        keep = [below / above for below, above in zip(self.rungs, self.rungs[1:], strict=False)]
        guessed = guesses(now, self.rungs, self.cfg)
        taken = {*now.failed} | self._elsewhere() | self._at_their_end(guessed)
        slow = now.too_slow(self.cfg.max_ms)  # by an earlier limit they were not
        points = [
            {number: point for number, point in rung.items() if number not in slow}
            for rung in now.points
        ]
        while chosen := promotion(points, keep, partial(self._order, guessed), taken, last):
            if self._promoted(*chosen):
                return True
            place, number = chosen  # another process does, so it counts there
            points[place][number] = points[place - 1][number]
        return False

    def _order(self, guessed: dict[int, Guess], rung: Rung) -> list[int]:
        if self.cfg.targets:
            return in_turns(guessed, self.cfg.targets)
        return best_first({number: point for number, point in rung.items() if number in guessed})

    def _at_their_end(self, guessed: dict[int, Guess]) -> set[tuple[int, int]]:
        """Tell for which rungs networks are not trained, as their final runs are next, or done."""
        if not self.cfg.targets or not self.cfg.final_seeds:  # there are none
            return set()
        return {
            (place, number)
            for number, one in guessed.items()
            for place, epochs in enumerate(self.rungs)
            if epochs >= one.epochs or one.final is not None
        }

    def _promoted(self, place: int, number: int) -> bool:
        """Train a trial for a rung; False if another process does, or has done so."""
        if (claim := self.study.claim(f"trial-{number}-rung-{place}")) is None:
            return False
        with claim:
            now = self.found.read()
            new = number not in now.trained[place] and (place, number) not in now.failed
            if new and claim.hopeless:
                log.warning("network %d failed: %s", number, KILLED)
                self.found.note_failed(number, place, KILLED)
            elif new:
                with claim.work():
                    self._train(number, self.found.overrides(number), place)
            claim.end()
        return new

    def _elsewhere(self) -> set[tuple[int, int]]:
        """Tell which trials other outputs train for further rungs, that share the storage alone."""
        others = [trial.number for trial in self.study.trials if not self.study.owns(trial)]
        return {(place, number) for place in range(1, len(self.rungs)) for number in others}

    def _left_out(self, now: Rungs) -> list[int]:
        """Tell which networks were too slow for an earlier command, and are not for this one."""
        fast = {*now.quiet_ms} - now.too_slow(self.cfg.max_ms) - {*now.trained[0]}
        return [
            trial.number
            for trial in self.study.trials
            if trial.values is not None and trial.number in fast and self.study.owns(trial)
        ]

    def _state(self, now: Rungs) -> str:
        drawn = f"{self.study.counted} of {self.cfg.n_trials} networks"
        left = max(0.0, 3600 * self.cfg.hours - now.seconds)
        said = state(now, guesses(now, self.rungs, self.cfg), self.rungs, self.cfg)
        return f"{drawn}; {said}; {duration(left)} of training left"
