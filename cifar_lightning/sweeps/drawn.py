"""The networks that a search for a front draws: built, measured, and told apart."""

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice
from typing import Any

import torch
from omegaconf import DictConfig

from cifar_lightning.benchmark.candidates import BenchmarkSpec, Source, of_model
from cifar_lightning.config.components import construct
from cifar_lightning.errors import UserError, bad_value
from cifar_lightning.runs import identity
from cifar_lightning.sweeps import run
from cifar_lightning.sweeps import space as spaces
from cifar_lightning.sweeps.found import LATENCY, OVERRIDES, Found, Timed
from cifar_lightning.sweeps.jobs import Job
from cifar_lightning.sweeps.space import Space
from cifar_lightning.sweeps.trial import Shared, composed
from cifar_lightning.sweeps.untrained import time_untrained

log = logging.getLogger(__name__)

BATCH = 8  # networks measured beside each other
IN_VAIN = 100  # draws in a row without a new network: there is none any more
PLAIN = (int, float, str, tuple, type(None))  # a setting of a module
NETWORK = "network"  # attribute of a trial: which network is trained how


class Draws:
    """Takes trials, draws a network for each and measures it.

    Args:
        cfg: Of the search.
        found: By it.
        space: From which is drawn.
        shared: Overrides of all training runs.
        spec: The variant and the number of threads.
        device: Where is measured.
    """

    def __init__(
        self,
        cfg: DictConfig,
        found: Found,
        space: Space,
        shared: Shared,
        spec: BenchmarkSpec,
        device: torch.device,
    ) -> None:
        self._cfg, self._found, self._space, self._shared = cfg, found, space, shared
        self._spec, self._device, self._study = spec, device, found.study

    def next_batch(self) -> list[Any]:
        """Draw until there are networks to train; return their trials, none in the end.

        Raises:
            UserError: If no network can be drawn, the variant can't be had, or no network can be as
                fast as asked for.
        """
        while True:
            exhausted = self._study.in_vain >= IN_VAIN
            count = 0 if exhausted else self._cfg.n_trials
            batch = list(islice(iter(partial(self._study.take, count), None), BATCH))
            if not batch:
                self._check_limit()  # it may be lower than the last time
                break
            if waiting := self._measured(batch):
                return waiting
        if exhausted and not self._study.counted:
            reason = self._study.trials[-1].user_attrs.get("reason")
            raise UserError(f"space: no network can be drawn; the last of {IN_VAIN}: {reason}")
        if exhausted:
            log.info("the last %d draws gave no new network", IN_VAIN)
        return []

    def _measured(self, trials: Sequence[Any]) -> list[Any]:
        """Measure networks beside each other; end the trials that are not to be trained."""
        jobs = {trial.number: job for trial in trials if (job := self._built(trial)) is not None}
        kept = [trial for trial in trials if trial.number in jobs]
        new = {
            trial.number: self._source(trial.number, jobs[trial.number])
            for trial in kept
            if LATENCY not in trial.user_attrs
        }
        for number, latency in self._time(new).items():
            (trial,) = (one for one in kept if one.number == number)
            self._found.note_latency(trial, trial.user_attrs[OVERRIDES], latency)
        self._check_limit()
        now = self._found.read()
        slow, waiting = now.too_slow(self._cfg.max_ms), []
        for trial in kept:
            if LATENCY not in trial.user_attrs:
                self._study.fail(trial, f"{self._cfg.variant}: can't be timed", "latency")
                continue
            if trial.number in slow:
                ms = now.quiet_ms[trial.number]
                log.info("network %d: %.3g ms, is not trained", trial.number, ms)
                # The sampler learns that this is no good: it is as accurate as guessing.
                guessing = 100 / jobs[trial.number].config["data"]["num_classes"]
                relative = self._found.latency(trial.number).relative
                self._study.tell(trial, math.log(relative), guessing)
                continue
            waiting.append(trial)
        return waiting

    def _built(self, trial: Any) -> Job | None:
        """Draw a network and build it; None if there is no such network, or it was drawn before."""
        overrides = spaces.draw(trial, self._space)
        epochs = f"epochs={self._cfg.rungs[0]}"
        try:
            (job,) = composed([self._shared.overrides(*overrides, epochs, run.SKIP_BENCHMARK)])
        except UserError as error:
            log.info("network %d: %s", trial.number, error)
            self._study.fail(trial, str(error), error.key or "", counted=False)
            return None
        trial.set_user_attr(OVERRIDES, overrides)
        trial.set_user_attr(NETWORK, which := network_of(job))
        for twin in self._study.trials[: trial.number]:
            if twin.user_attrs.get(NETWORK) == which:
                reason = f"the same network as {twin.number}"
                log.info("network %d: %s", trial.number, reason)
                if twin.values is None:
                    self._study.fail(trial, reason, "twin", counted=False)
                else:
                    self._study.tell(trial, *twin.values, counted=False)
                return None
        return job

    def _time(self, sources: Mapping[int, Source]) -> dict[int, Timed]:
        """Measure networks beside each other; those that the search was killed in, each alone."""
        beside = [number for number in sources if not self._study.claims[number].killed]
        timed: dict[int, Timed] = {}
        alone = [[number] for number in sources if number not in beside]
        for group in filter(None, (beside, *alone)):
            with ExitStack() as works:
                for number in group:
                    works.enter_context(self._study.claims[number].work())
                these = {number: sources[number] for number in group}
                timed |= time_untrained(these, self._spec, self._device, self._study.outputs)
        return timed

    def _check_limit(self) -> None:
        """See that a network can be as fast as asked for, by what was measured so far.

        Raises:
            UserError: If a call takes longer by itself.
        """
        floor_ms, max_ms = self._found.read().floor_ms or 0.0, self._cfg.max_ms
        if max_ms is not None and max_ms < floor_ms:
            allowed = f"above {floor_ms:.3g}, what a call of {self._cfg.variant} takes by itself"
            raise bad_value("max_ms", max_ms, allowed)

    def _source(self, number: int, job: Job) -> Source:
        network = job.folder.name.partition("-")[0]
        model, threads = job.config["model"], self._cfg.threads
        return of_model(f"network {number}", network, model, self._cfg.variant, threads)


def network_of(job: Job) -> str:
    """Tell which network a job trains, and how, as a digest.

    By what is built: a key that has no say there, such as a stem's kernel without a stem, has none
    here either.
    """
    others = identity.training_config(job.config | {"model": {}})
    said = json.dumps([built(job.config["model"]), others], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def built(model: Mapping[str, Any]) -> str:
    """Tell which network a ``model`` node builds, as a digest."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = construct("model", model)
    digest = hashlib.sha256()
    for name, module in network.named_modules():
        plain = {key: one for key, one in vars(module).items() if isinstance(one, PLAIN)}
        digest.update(f"{name} {type(module)} {sorted(plain.items())}".encode())
    for name, values in network.state_dict(keep_vars=True).items():
        digest.update(f"{name} {values.dtype} {values.shape} {values.requires_grad}".encode())
        digest.update(values.detach().numpy().tobytes())
    return digest.hexdigest()
