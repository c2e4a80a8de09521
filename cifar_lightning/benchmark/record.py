"""The record of a benchmark, out of what one process or several have measured."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import torch

from cifar_lightning.benchmark.session import Timed
from cifar_lightning.benchmark.timing import clock_of
from cifar_lightning.config.protocols import PROTOCOL_VERSION
from cifar_lightning.runs.benchmark import BenchmarkRecord
from cifar_lightning.runs.blocks import Session
from cifar_lightning.runs.environment import Environment
from cifar_lightning.system import environment
from cifar_lightning.system.devices import device_key, device_name, hardware_slug


def environment_of(device: torch.device) -> Environment:
    """Tell where something is measured now."""
    return Environment(
        environment.versions(),
        environment.machine(),
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
        device=device_key(device),
    )


def record_of(
    id: str, started: datetime, protocol: str, device: torch.device, timed: Sequence[Timed]
) -> BenchmarkRecord:
    """Make the record of a benchmark.

    Args:
        id: Names its file.
        started: When it was.
        protocol: Its name.
        device: Where it was.
        timed: What each process measured; a candidate that failed in one of them is left out.
    """
    named = [{(one.role, one.key): one for one in each.candidates} for each in timed]
    kept = [name for name in named[0] if all(name in each for each in named)]
    orders = [[[*each].index(name) for name in kept] for each in named]
    return BenchmarkRecord(
        id=id,
        started=started.astimezone(UTC).isoformat(timespec="seconds"),
        protocol=protocol,
        protocol_version=PROTOCOL_VERSION,
        device=device_name(device),
        hardware=hardware_slug(device),
        clock=clock_of(device),
        code=environment.code(),
        environment=environment_of(device),
        candidates=[named[0][name] for name in kept],
        state={"before": timed[0].state["before"], "after": timed[-1].state["after"]},
        sessions=[
            _renumbered(each.session, order) for each, order in zip(timed, orders, strict=True)
        ],
    )


def _renumbered(session: Session, numbers: Sequence[int]) -> Session:
    """Keep those of a session's candidates, in this order."""

    def order(old: Sequence[int]) -> list[int]:
        return [numbers.index(number) for number in old if number in numbers]

    rounds = [
        replace(one, order=order(one.order), blocks=[one.blocks[number] for number in numbers])
        for one in session.rounds
    ]
    return replace(session, build_order=order(session.build_order), rounds=rounds)


def told_apart(record: BenchmarkRecord) -> set[str]:
    """List the keys of candidates that another run's weights were told apart from.

    By the rule by which a verdict calls one candidate slower than another.
    """
    keys = [one.key for one in record.candidates]
    found = set()
    for check, one in enumerate(record.candidates):
        of = next((number for number in record.ranked if keys[number] == one.key), None)
        if one.role == "check" and of is not None and record.differ(of, check):
            found.add(one.key)
    return found
