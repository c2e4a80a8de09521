"""Optuna, where it is installed, and the storages of its trials."""

from pathlib import Path
from typing import Any

from cifar_lightning.errors import UserError
from cifar_lightning.system.environment import installation


def opened(storage: str | None, journal: Path) -> Any:
    """Open a database by its URL, or a file where there is none."""
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if storage is None:
        return JournalStorage(JournalFileBackend(str(journal)))
    # A connection may have been closed while a trial was trained.
    return RDBStorage(storage, engine_kwargs={"pool_pre_ping": True})


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
