"""Optuna, where it is installed, and the storages of its trials."""

from pathlib import Path
from typing import Any

from cifar_lightning.errors import UserError
from cifar_lightning.system.environment import installation


def opened(storage: str | None, journal: Path) -> Any:
    """Open a database by its URL, or a file where there is none."""
    from optuna.storages import JournalStorage, RDBStorage

    if storage is None:
        return JournalStorage(_journal(journal))
    # A connection may have been closed while a trial was trained.
    return RDBStorage(storage, engine_kwargs={"pool_pre_ping": True})


def _journal(path: Path) -> Any:
    """Open a file of trials, to which whole lines alone are added.

    Optuna's own adds to half a line, too, which a full disk or a kill has left: that one is skipped
    then, and the next one can't be read.
    """
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    lock = JournalFileSymlinkLock(str(path))

    class Whole(JournalFileBackend):
        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            lock.acquire()
            try:
                end_with_a_whole_line(path)
            finally:
                lock.release()
            super().append_logs(logs)

    return Whole(str(path), lock)


def end_with_a_whole_line(path: Path) -> None:
    """Cut off the beginning of a line that ends a file."""
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with path.open("rb+") as file:
            file.truncate(content.rfind(b"\n") + 1)


def of_storage(error: BaseException) -> bool:
    """Tell whether an error says that a storage has failed."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(error, StorageInternalError | SQLAlchemyError)


def import_optuna() -> Any:
    """Import Optuna, which says nothing but warnings.

    Raises:
        UserError: If it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError(f"tune.py needs Optuna: {installation('tune')}") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
