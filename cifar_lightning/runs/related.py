"""Runs that someone may take for each other: told at once, before another one is trained."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cifar_lightning.errors import UserError
from cifar_lightning.runs.changes import settings_changes
from cifar_lightning.runs.find import load_run
from cifar_lightning.runs.identity import Kin
from cifar_lightning.runs.index import Named, named_runs
from cifar_lightning.runs.run import Run
from cifar_lightning.system.formatting import some


def relations(outputs: Path, run: Run, before: Run | None) -> Iterator[str]:
    """Yield what is to be said of a run that begins, or that gets another ID.

    Of a new one: that another one differs only in how long it is trained, since that one is not
    continued. Of both: that another training run has the same ID; seeds may share one.

    Args:
        outputs: Where the other runs are.
        run: As it is now.
        before: As an earlier command left it; None for a new one.
    """
    if before is not None and before.label == run.label:
        return
    kin, others = Kin.of(run.config), [one for one in _known(outputs) if one.name != run.name]
    if before is not None:
        yield renamed(run, before)
    elif alike := [one for one in others if one.kin.lengths == kin.lengths]:
        yield f"a new run: like {_told(alike, run, 'but {}')}; what is there stays as it is"
    if sharing := [one for one in others if _shares(one, run.label, kin)]:
        meant = "both" if len(sharing) == 1 else "all of them"
        yield (
            f"id={run.label}: also the ID of {_told(sharing, run, '({})')}; "
            f"run={run.label} will mean {meant}, another id= tells them apart"
        )


def renamed(run: Run, before: Run) -> str:
    """Say that a run has another ID."""
    return f"{run.name}: its ID is {run.label}, and was {before.label}"


def shared_ids(outputs: Path, configs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each ID that runs of a sweep share with other training runs than their own.

    Args:
        outputs: Where the other runs are.
        configs: Of the sweep's runs, resolved, by their names.
    """
    by_label: dict[str, dict[str, str]] = defaultdict(dict)  # names by what differs in no setting
    for name, config in configs.items():
        if config["id"] is not None:
            by_label[config["id"]].setdefault(Kin.of(config).seeds, name)
    for one in _known(outputs) if by_label else ():
        if one.label in by_label and one.name not in configs:
            by_label[one.label].setdefault(one.kin.seeds, one.name)
    for label, names in by_label.items():
        if len(names) > 1:
            yield (
                f"id={label}: the ID of {len(names)} different training runs "
                f"({some([*names.values()])}); run={label} will mean all of them"
            )


def _known(outputs: Path) -> list[Named]:
    """List the runs that there are; what is damaged is told where it is needed."""
    return [one for one in named_runs(outputs) if isinstance(one, Named)]


def _shares(other: Named, label: str, kin: Kin) -> bool:
    return other.label == label and other.kin.seeds != kin.seeds


def _told(others: Sequence[Named], run: Run, differing: str) -> str:
    """Name runs, and say of the first one how this one differs; no other record is read."""
    first, *more = others
    told = first.name
    with suppress(UserError):  # it was removed meanwhile
        changes = settings_changes(load_run(first.folder), run)
        told += f" {differing.format(', '.join(changes))}"
    return f"{told}, and {len(more)} more" if more else told
