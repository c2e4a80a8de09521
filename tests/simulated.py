"""Records as a benchmark would write them, of a simulated machine that drifts and is noisy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from test_results import MACHINE, MEASUREMENT, RUN, with_seed

from cifar_lightning.comparison.choice import Need
from cifar_lightning.comparison.collect import compare
from cifar_lightning.comparison.records import Records
from cifar_lightning.runs.benchmark import BenchmarkRecord
from cifar_lightning.runs.blocks import Block, Round, Session
from cifar_lightning.runs.candidate import Candidate, recipe
from cifar_lightning.runs.environment import Environment
from cifar_lightning.runs.identity import run_name
from cifar_lightning.runs.results import RunResults
from cifar_lightning.runs.run import Run
from cifar_lightning.system.environment import Code
from cifar_lightning.system.files import write_atomically

NEED = Need(85)
SECOND = 2.0  # of the second reference, relative to the first


def candidate(label="a", model=None, variant="fp32", threads=1, role="candidate", **changed):
    """Make one; its network is its label's unless a model is given."""
    return Candidate(
        role=role,
        label=label,
        network="net",
        model={"name": label} if model is None else model,
        variant=variant,
        recipe=changed.pop("recipe", recipe(variant)),
        engines=changed.pop("engines", {"torch": "2"}),
        threads=threads,
        **changed,
    )


def benchmark(
    timed,
    number=0,
    rounds=100,
    noise=0.01,
    drift=0.05,
    calls=4,
    second=SECOND,
    processes=None,
    between=0.0,
    seed=0,
    preempted=False,
    **changed,
):
    """Time candidates: the machine's speed walks by ``drift``, each block errs by ``noise``.

    Args:
        timed: Pairs of a candidate and its true latency, relative to the reference's.
        number: Names the benchmark; a later one is larger.
        rounds: In each process, or in all of eight together.
        noise: Standard deviation of a block's log.
        drift: Of the machine's log-speed, from round to round.
        calls: In a block.
        second: True relative latency of the second reference.
        processes: Sessions; None for the protocol's eight.
        between: Standard deviation of each candidate's log latency between processes.
        seed: Of all chance.
        preempted: Whether something else ran in every block's place.
        changed: Further fields of the record.
    """
    rng = np.random.default_rng([seed, number])
    everyone = [
        *timed,
        (candidate("reference", role="reference"), 1.0),
        (candidate("double", role="double"), 1.0),
        (candidate("second", role="second_reference"), second),
    ]
    truths = np.log([truth for _, truth in everyone])
    order = list(range(len(everyone)))
    sessions = []
    shared = [len(part) for part in np.array_split(range(rounds), min(8, rounds))]
    for of_one in shared if processes is None else [rounds] * processes:
        shift = between * rng.normal(size=len(everyone))
        speed = np.cumsum(drift * rng.normal(size=of_one))[:, None]
        means = truths + shift + speed + noise * rng.normal(size=(of_one, len(everyone)))
        spread = 1 + 0.1 * np.linspace(-1, 1, calls)
        sessions.append(
            Session(
                build_order=order,
                rounds=[
                    Round(
                        order,
                        [
                            Block(
                                calls_ms=(mean * spread).tolist(),
                                wall_s=1.0,
                                cpu_s=1.0,
                                switches=int(preempted),
                            )
                            for mean in row
                        ],
                    )
                    for row in np.exp(means)
                ],
                ended="converged",
            )
        )
    fields = {
        "id": f"2026-01-01T00-00-{number:02d}-abcd",
        "started": f"2026-01-01T00:00:{number:02d}+00:00",
        "protocol": "full",
        "protocol_version": MEASUREMENT.protocol_version,
        "device": MEASUREMENT.device,
        "hardware": MEASUREMENT.hardware,
        "clock": "perf_counter",
        "code": Code("abc", False),
        "environment": Environment({"torch": "2"}, MACHINE),
        "candidates": [one for one, _ in everyone],
        "sessions": sessions,
        "state": {},
    }
    return BenchmarkRecord(**fields | changed)


def stop(record):
    """Let its last process have been stopped."""
    *earlier, last = record.sessions
    return replace(record, sessions=[*earlier, replace(last, ended="stopped")])


def a_run(label, seed=0, fingerprint="f" * 16, **config):
    """Make a finished run; its network is its label's unless a model is given."""
    config = with_seed(seed) | {"model": {"name": label}} | config
    name = run_name(config, RUN.choices)
    return replace(RUN, id=label, name=name, config=config, data_fingerprint=fingerprint)


def of_run(run, **how):
    """Make the candidate that a run is one of."""
    return candidate(run.id or "a", run.config["model"], run=run.name, **how)


def measured(run, record=None, acc=90.0, images=1000, truth=1.0, **changed):
    """Make a run's measurement out of a benchmark, or of one of its own.

    Args:
        run: Whose.
        record: The benchmark; None makes one, which nobody keeps.
        acc: Test accuracy in percent.
        images: In the test split.
        truth: Relative latency in a benchmark of its own.
        changed: Further fields; those of the candidate among them.
    """
    how = {"variant": "fp32", "threads": 1, "engines": {"torch": "2"}}
    how |= {key: changed.pop(key) for key in list(changed) if key in how}
    how["recipe"] = changed.pop("recipe", recipe(how["variant"]))
    one = of_run(run, **how)
    record = benchmark([(one, truth)], rounds=40) if record is None else record
    numbers = [n for n in record.ranked if record.candidates[n].key == one.key]
    timing = record.timing(numbers[0])
    right = round(acc * images / 100)
    fields = {
        **how,
        "run": run.name,
        "candidate": one.key,
        "benchmark": record.id,
        "test_acc": 100 * right / images,
        "confusion": [[right, images - right], [0, 0]],
        "latency": timing.latency,
        "relative": timing.relative,
        "rounds": timing.rounds,
        "ended": timing.ended,
        "converged": True,  # as the benchmark says of all, however few rounds a test takes
        "preempted": timing.preempted,
        "status": "disturbed" if timing.disturbed else "ok",
        "device": record.device,
        "hardware": record.hardware,
        "protocol": record.protocol,
    }
    return replace(MEASUREMENT, **fields | changed)


@dataclass(frozen=True)
class Plan:
    """A run to be measured in a benchmark together with others."""

    run: Run
    truth: float
    how: dict
    measured: dict


def entry(label, acc, truth, images=1000, variant="fp32", threads=1, **changed):
    """Plan an entry; further keys are a measurement's, ``seed`` or the configuration's."""
    kept = {key: changed.pop(key) for key in list(changed) if key in ("confusion", "size_bytes")}
    how = {"variant": variant, "threads": threads}
    return Plan(a_run(label, **changed), truth, how, {"acc": acc, "images": images, **kept})


def comparison(*plans, need=NEED, baseline=None, right=None, records=None, **options):
    """Compare entries that one benchmark has timed, or several that are given."""
    if records is None:
        records = [benchmark([(of_run(one.run, **one.how), one.truth) for one in plans], **options)]
    results = []
    for one in plans:
        key = of_run(one.run, **one.how).key
        there = [r for r in records if key in [r.candidates[n].key for n in r.ranked]]
        taken = measured(one.run, there[-1], **one.how, **one.measured)
        results.append(
            RunResults(Path("outputs", "runs", one.run.name), one.run, [(None, taken)], [])
        )
    known = {record.id: record for record in records}
    return compare(Records(results, known, right or {}), need, baseline)


def leaderboard(*plans, **options):
    """Take the only leaderboard of `comparison`."""
    (found,) = comparison(*plans, **options).leaderboards
    return found


def named(found, name):
    """Take an entry by its name, or by its label where the variant is fp32."""
    (one,) = [e for e in found.entries if e.name in (name, f"{name} fp32")]
    return one


def keep(outputs, record):
    """Write a benchmark's record where it belongs."""
    write_atomically(record.path(outputs, record.id), record.to_json())
    return record
