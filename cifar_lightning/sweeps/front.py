"""A search for networks that no other one is both faster and more accurate than.

Latency is known in seconds and before any training, accuracy costs minutes: networks are drawn and
measured in batches, those that are too slow are left, and the others trained by successive halving.
"""

import logging
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cifar_lightning.benchmark.candidates import BenchmarkSpec, Source, of_model
from cifar_lightning.config import rules
from cifar_lightning.errors import RunFailed, UserError, bad_value
from cifar_lightning.runs.run import Run
from cifar_lightning.sweeps import run
from cifar_lightning.sweeps import space as spaces
from cifar_lightning.sweeps.finals import train_finally
from cifar_lightning.sweeps.found import LATENCY, OVERRIDES, Found, Rungs, Timed
from cifar_lightning.sweeps.front_shown import show
from cifar_lightning.sweeps.jobs import Job
from cifar_lightning.sweeps.ladder import promotion
from cifar_lightning.sweeps.space import Space
from cifar_lightning.sweeps.study import KILLED, Study
from cifar_lightning.sweeps.trial import checked, composed, shared_overrides, study_name, train
from cifar_lightning.sweeps.untrained import PROTOCOL, time_untrained
from cifar_lightning.system.devices import find_device
from cifar_lightning.system.formatting import counted, duration

log = logging.getLogger(__name__)

BATCH = 8  # networks measured beside each other
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
    space = spaces.flatten_space(OmegaConf.to_container(cfg.space, resolve=True))  # type: ignore[arg-type]
    rules.check(OmegaConf.to_container(OmegaConf.masked_copy(cfg, KEYS)))  # type: ignore[arg-type]
    spec = BenchmarkSpec([cfg.variant], [cfg.threads], PROTOCOL).checked()
    shared = shared_overrides(cfg.base)
    base = checked([*shared, f"epochs={cfg.rungs[-1]}"], space)
    if math.prod(len(entry.ends) for entry in space.values()) == 1:
        raise bad_value("space", spaces.as_plain(space), "more than one network")
    name = study_name(base, spaces.as_plain(space), cfg.variant, cfg.threads, [*cfg.rungs])
    outputs, sampler = Path(base.config["outputs"]), partial(_sampler, base.config["seed"])
    with Study(outputs, name, ["minimize", "maximize"], cfg.storage, sampler) as study:
        search = _Search(cfg, study, base, space, shared, spec)
        search.run()


def _sampler(seed: int, number: int) -> Any:
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import TPESampler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(seed=seed + number, multivariate=True, group=True)


class _Search:
    def __init__(
        self,
        cfg: DictConfig,
        study: Study,
        base: Job,
        space: Space,
        shared: Sequence[str],
        spec: BenchmarkSpec,
    ) -> None:
        self.cfg, self.study, self.space, self.shared, self.spec = cfg, study, space, shared, spec
        self.rungs: list[int] = [*cfg.rungs]
        self.found = Found(study, self.rungs)
        self.outputs = Path(base.config["outputs"])
        self.device = find_device(str(base.config["trainer"].get("accelerator", "auto")))
        self.guess = 100 / base.config["data"]["num_classes"]
        self.waiting: list[Any] = []  # trials measured, and not trained yet

    def run(self) -> None:
        now = self.found.read()
        log.info("study %s: %s", self.study.name, self._state(now))
        while now.seconds < 3600 * self.cfg.hours and self._step(now):
            now = self.found.read()
            log.info("%s", self._state(now))
        if not any(now.points):
            raise RunFailed(f"{self.study.name}: no network could be trained")
        show(self.found, self.outputs, self.cfg.variant, self.cfg.threads)
        self.study.release()
        if others := self.study.others:  # the last process sees what all have found
            log.info("other processes are at work on %s", counted(others, "network"))
        elif now.points[-1]:
            train_finally(self.cfg, self.found, self.shared, self.space)

    def _step(self, now: Rungs) -> bool:
        """Train or measure one thing; False if nothing is left to do here."""
        new = iter(partial(self.study.take, self.cfg.n_trials), None)
        while not self.waiting and (batch := list(islice(new, BATCH))):
            self.waiting = self._measured(batch)
        if self._promote(now, last=not self.waiting):
            return True
        if not self.waiting:
            return False
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
        ending = train([*self.shared, *overrides, f"epochs={epochs}"], self.space)
        if isinstance(ending, Run):
            self.found.note_trained(number, place, ending)
            return ending
        log.warning("network %d failed: %s", number, ending.message)
        self.found.note_failed(number, place, ending.message)
        return ending.message

    def _promote(self, now: Rungs, last: bool) -> bool:
        """Train the trial that most deserves it for its next rung; False if none does."""
        keep = [below / above for below, above in zip(self.rungs, self.rungs[1:], strict=False)]
        taken = now.failed | self._elsewhere()
        while (chosen := promotion(now.points, keep, taken, last)) is not None:
            if self._promoted(*chosen):
                return True
            taken = taken | {chosen}
        return False

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

    def _measured(self, trials: Sequence[Any]) -> list[Any]:
        """Measure networks beside each other; end the trials that are not to be trained."""
        jobs: dict[int, Job] = {}
        for trial in trials:
            overrides = spaces.draw(trial, self.space)
            try:
                (jobs[trial.number],) = composed(
                    [[*self.shared, *overrides, f"epochs={self.rungs[0]}", run.SKIP_BENCHMARK]]
                )
            except UserError as error:
                log.info("network %d: %s", trial.number, error)
                self.study.fail(trial, str(error), error.key or "")
            else:
                trial.set_user_attr(OVERRIDES, overrides)
        kept = [trial for trial in trials if trial.number in jobs]
        new = {
            trial.number: self._source(trial.number, jobs[trial.number])
            for trial in kept
            if LATENCY not in trial.user_attrs
        }
        timed = self._time(new)
        waiting = []
        for trial in kept:
            if trial.number in timed:
                self.found.note_latency(trial, trial.user_attrs[OVERRIDES], timed[trial.number])
            if LATENCY not in trial.user_attrs:
                self.study.fail(trial, f"{self.cfg.variant}: can't be timed", "latency")
                continue
            of_trial = self.found.latency(trial.number)
            if self.cfg.max_ms is not None and of_trial.mean_ms > self.cfg.max_ms:
                log.info("network %d: %.3g ms, is not trained", trial.number, of_trial.mean_ms)
                # The sampler learns that this is no good: it is as accurate as guessing.
                self.study.tell(trial, math.log(of_trial.relative), self.guess)
                continue
            waiting.append(trial)
        return waiting

    def _time(self, sources: Mapping[int, Source]) -> dict[int, Timed]:
        """Measure networks beside each other; those that the search was killed in, each alone."""
        beside = [number for number in sources if not self.study.claims[number].killed]
        timed: dict[int, Timed] = {}
        alone = [[number] for number in sources if number not in beside]
        for group in filter(None, (beside, *alone)):
            with ExitStack() as works:
                for number in group:
                    works.enter_context(self.study.claims[number].work())
                these = {number: sources[number] for number in group}
                timed |= time_untrained(these, self.spec, self.device, self.outputs)
        self._check_limit(timed.values())
        return timed

    def _check_limit(self, timed: Iterable[Timed]) -> None:
        """See that a network can be as fast as asked for.

        Raises:
            UserError: If a call takes longer by itself.
        """
        floor_ms = min((one.floor_ms for one in timed if one.floor_ms is not None), default=0.0)
        if self.cfg.max_ms is not None and self.cfg.max_ms < floor_ms:
            allowed = f"above {floor_ms:.3g}, what a call of {self.cfg.variant} takes by itself"
            raise bad_value("max_ms", self.cfg.max_ms, allowed)

    def _source(self, number: int, job: Job) -> Source:
        network = job.folder.name.partition("-")[0]
        model = job.config["model"]
        return of_model(f"network {number}", network, model, self.cfg.variant, self.cfg.threads)

    def _state(self, now: Rungs) -> str:
        trained = ", ".join(
            f"{len(of_rung)} for {counted(epochs, 'epoch')}"
            for epochs, of_rung in zip(self.rungs, now.trained, strict=True)
        )
        left = max(0.0, 3600 * self.cfg.hours - now.seconds)
        return (
            f"{len(self.study.trials)} of {self.cfg.n_trials} networks; trained {trained}; "
            f"{duration(left)} of training left"
        )
