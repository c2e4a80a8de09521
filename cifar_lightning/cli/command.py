"""What every command shares: Hydra around it, errors in one line, exit statuses, no leftovers."""

import logging
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core import utils as hydra_utils
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cifar_lightning.cli.arguments import for_hydra, is_sweep
from cifar_lightning.cli.endings import to_ending
from cifar_lightning.config import rules, schema
from cifar_lightning.config.texts import expand_home
from cifar_lightning.errors import RunFailed, UserError
from cifar_lightning.runs import resolve
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.system import environment, outcome, signals, streams
from cifar_lightning.system.escaping import visible, without_secrets
from cifar_lightning.system.files import share_with_others, write_atomically
from cifar_lightning.system.locks import alone

C = TypeVar("C")
_started = False


def _save_config(cfg: DictConfig, filename: str, output_dir: Path) -> None:
    """Write one of Hydra's files.

    NOTE: Hydra's function empties the earlier file first, so a full disk would take from a finished
    run what it was made with.
    """
    write_atomically(Path(output_dir) / filename, OmegaConf.to_yaml(cfg))


hydra_utils._save_config = _save_config


def command(
    name: str, config: type[C], positional: str | None = None
) -> Callable[[Callable[[C], None]], Callable[[], None]]:
    """Make a command, as `entry_point` does, of a function of a typed and checked configuration."""
    return lambda task: entry_point(
        name, config, lambda composed: task(rules.typed(composed, config)), positional
    )


def entry_point(
    name: str,
    config: type,
    task: Callable[[DictConfig], None],
    positional: str | None = None,
    sweeps: bool = False,
) -> Callable[[], None]:
    """Make a command out of a function of the composed configuration.

    An error of ours ends the command with one line on stderr and its exit status. What a refused
    job had left behind is removed.

    Args:
        name: The file in ``conf``, without its ending.
        config: Its schema: tells which arguments are texts.
        task: The function.
        positional: The key, a list of texts, of arguments that come without one.
        sweeps: Whether it can be a multirun.
    """
    resolve.register()
    statuses: list[int] = []
    outcome_file: str | None = None

    def report(error: BaseException) -> None:
        ending = to_ending(error, _started)
        if not _started or not isinstance(ending, RunFailed):
            _remove_leftovers()
        for line in str(ending).split("\n"):
            print(f"error: {visible(without_secrets(line))}", file=sys.stderr)
        statuses.append(ending.exit_status)
        if outcome_file:
            outcome.Outcome(ending.kind, str(ending), ending.key).write(Path(outcome_file))

    def job(composed: DictConfig) -> None:
        try:
            signals.check()  # what Hydra called may have swallowed it
            share_outputs(composed)
            mark_started()
            task(composed)
            _remove_leftovers()  # a trial of a few batches makes no run
            sys.stdout.flush()
        except (Exception, KeyboardInterrupt) as error:  # here, or Hydra says something of its own
            report(error)

    around = hydra.main(version_base="1.3", config_path=str(schema.CONF_DIR), config_name=name)
    hydra_main = around(job)

    def main() -> None:
        global _started
        nonlocal outcome_file
        streams.secure()
        os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, instead of printing and exiting with 1
        # A full disk can't take messages either; the error says it once.
        logging.raiseExceptions = False
        outcome_file = os.environ.pop(outcome.VARIABLE, None)  # child processes are not asked
        _started = False
        statuses.clear()
        HydraConfig.instance().cfg = None
        try:
            with signals.handled():
                if is_sweep(sys.argv[1:]) and not sweeps:
                    raise UserError(f"-m: {name} takes no sweep")
                sys.argv[1:] = for_hydra(sys.argv[1:], config, positional)
                hydra_main()
        except (Exception, KeyboardInterrupt) as error:
            report(error)
        if statuses:
            sys.exit(max(statuses))  # an interruption outranks a mistake, a mistake a failure

    return main


def mark_started() -> None:
    """Say that the work has begun: from here on, an unknown error is none of Hydra's.

    What will be recorded was made by the code as it is now.
    """
    global _started
    _started = True
    environment.code()


def share_outputs(config: DictConfig) -> None:
    """Share what is written with all users of the outputs."""
    outputs = config.outputs
    if folder := outputs if isinstance(outputs, str) else next(iter(outputs or ()), None):
        share_with_others(Path(expand_home(folder)))


class BeforeFolders(Callback):
    """Does what has to be done before Hydra makes folders.

    A multirun's settings are known then before its first job, so that it can be tidied up.

    Args:
        places: That Hydra's folders are ours was checked when this was resolved. What a callback
            does later can't end a command.
    """

    def __init__(self, places: bool) -> None:
        assert places

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        share_outputs(config)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        share_outputs(config)
        HydraConfig.instance().set_config(config)


def _remove_leftovers() -> None:
    """Remove what Hydra made for a job that never became a run."""
    if not HydraConfig.initialized():
        return
    settings = HydraConfig.get()
    none_yet = OmegaConf.is_missing(settings.runtime, "output_dir")
    folder = Path("" if none_yet else settings.runtime.output_dir)
    made = not none_yet and settings.output_subdir and folder.exists()
    if made and not RunFolder(folder).record.exists():
        # Another process that is just beginning this very run holds the lock; its files stay.
        with suppress(UserError), alone(RunFolder(folder).lock, "held"):
            shutil.rmtree(folder / str(settings.output_subdir), ignore_errors=True)
            for path in (RunFolder(folder).log, RunFolder(folder).lock):
                path.unlink(missing_ok=True)
        _remove_empty(folder, folder.parent, folder.parent.parent)
    if settings.mode == RunMode.MULTIRUN:
        (Path(settings.sweep.dir) / "multirun.yaml").unlink(missing_ok=True)
        _remove_empty(Path(settings.sweep.dir), Path(settings.sweep.dir).parent)


def _remove_empty(*folders: Path) -> None:
    """Remove folders, the innermost first, as far as they hold nothing."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
