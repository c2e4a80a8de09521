"""A study of trials that several processes, on one machine or more, work on.

Its file and locks lie in the outputs; given a storage, the trials lie there. A trial that a process
has begun is its own until it ends, or until the process does: then another one takes it up.
"""

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, Self

from cifar_lightning.errors import UserError, bad_value, reason_of
from cifar_lightning.system.environment import installation
from cifar_lightning.system.files import check_inside, is_disk_full, write_atomically
from cifar_lightning.system.locks import claimed, locked

SEARCHES, JOURNAL = "searches", "journal.log"  # a folder of the outputs, and a file of a study's
KILLED_WITH_SEARCH = 3  # times, and a trial is taken up no more
# How often a trial was begun, and left; it was not left where the search was killed. Whose it is.
BEGUN, LEFT, OWNER = "begun", "left", "owner"
Direction = Literal["minimize", "maximize"]


class Study:
    """An Optuna study, and the trials in it that this process works on.

    Attributes:
        name: Of everything that its trials share.
        folder: Of its files.
        optuna: Optuna's own object.
    """

    def __init__(
        self,
        outputs: Path,
        name: str,
        directions: Sequence[Direction],
        storage: str | None,
        sampler: Callable[[int], Any],
    ) -> None:
        """Open a study, or begin it.

        Args:
            outputs: Where its folder is.
            name: Of everything that its trials share.
            directions: Of its values.
            storage: Optuna's URL of a database; None is a file in its folder, which processes on
                several machines may share.
            sampler: Makes the sampler of a trial by its number: of another seed each time, or a
                search that goes on would draw the same again.

        Raises:
            UserError: If Optuna is not installed or can't open the storage.
        """
        optuna = _optuna()
        self.name, self.folder = name, outputs / SEARCHES / name
        check_inside(outputs, self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sampler, self._claims = sampler, dict[int, ExitStack]()
        from optuna.storages import JournalStorage, get_storage
        from optuna.storages.journal import JournalFileBackend

        try:
            opened = (
                JournalStorage(JournalFileBackend(str(self.folder / JOURNAL)))
                if storage is None
                else get_storage(storage)
            )
            self.optuna = optuna.create_study(
                storage=opened, study_name=name, directions=directions, load_if_exists=True
            )
        except Exception as error:  # another user's, damaged, or a database's own
            if is_disk_full(error):
                raise
            if storage is None:
                path = self.folder / JOURNAL
                raise UserError(f"{path}: can't be used: {reason_of(error)}") from error
            shown = storage.partition("://")[0] + "://..."  # the rest may hold a password
            raise bad_value("storage", shown, f"a database ({reason_of(error)})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for claim in self._claims.values():
            claim.close()

    @property
    def trials(self) -> list[Any]:
        """All trials, of every process."""
        found: list[Any] = self.optuna.get_trials(deepcopy=False)
        return found

    @property
    def ended(self) -> int:
        """How many trials have ended, well or not."""
        return sum(trial.state.is_finished() for trial in self.trials)

    def take(self, count: int) -> Any | None:
        """Take up a trial that a process here has left, or begin one until there are ``count``.

        A trial in which the search was killed again and again, perhaps for want of memory, has
        failed.

        Args:
            count: Of trials in all. Processes that share the storage but not the outputs may begin
                one more each.

        Returns:
            The trial; None if there is none to begin.
        """
        from optuna.trial import Trial, TrialState

        with locked(self.folder / "begin.lock", f"waiting: {self.name} begins a trial elsewhere"):
            trials = self.trials
            for left in trials:
                if left.state != TrialState.RUNNING or left.user_attrs.get(OWNER) != self._owner:
                    continue
                if left.number in self._claims or not self._claim(left.number):
                    continue
                if self.trials[left.number].state.is_finished():  # in this very moment
                    self._release(left.number)
                    continue
                killed = left.user_attrs.get(BEGUN, 0) - left.user_attrs.get(LEFT, 0)
                if killed >= KILLED_WITH_SEARCH:
                    self._end(left.number, state=TrialState.FAIL)
                    continue
                # With the same settings, so its run continues.
                return Trial(self.optuna, left._trial_id)
            if len(trials) >= count:
                return None
            self.optuna.sampler = self._sampler(len(trials))
            trial = self.optuna.ask()
            trial.set_user_attr(OWNER, self._owner)
            self._claim(trial.number)
            return trial

    @contextmanager
    def work(self, trial: Any) -> Iterator[None]:
        """Note that work on a trial begins, and if it is left, that it was not killed."""
        trial.set_user_attr(BEGUN, trial.user_attrs.get(BEGUN, 0) + 1)
        try:
            yield
        except BaseException:
            trial.set_user_attr(LEFT, trial.user_attrs.get(LEFT, 0) + 1)
            raise

    def tell(self, trial: Any, *values: float) -> None:
        """End a trial with its values."""
        self._end(trial.number, values=values)

    def fail(self, trial: Any, reason: str, cause: str) -> None:
        """End a trial whose settings can't be used.

        Args:
            trial: The trial.
            reason: For people.
            cause: Equal for trials that fail alike.
        """
        from optuna.trial import TrialState

        trial.set_user_attr("reason", reason)
        trial.set_user_attr("cause", cause)
        self._end(trial.number, state=TrialState.FAIL)

    def _end(self, number: int, **told: Any) -> None:
        self.optuna.tell(number, **told)
        self._release(number)

    def _claim(self, number: int) -> bool:
        """Make a trial this process's own; False if it is another one's."""
        claim = ExitStack()
        mine = claim.enter_context(claimed(self._lock_file(number)))
        if mine:
            self._claims[number] = claim
        return mine

    def _release(self, number: int) -> None:
        self._lock_file(number).unlink(missing_ok=True)
        self._claims.pop(number).close()

    def _lock_file(self, number: int) -> Path:
        return self.folder / f"trial-{number}.lock"

    @property
    def _owner(self) -> str:
        """Name these outputs: locks tell of its processes alone whether they are alive."""
        path = self.folder / "owner"
        if not path.exists():
            write_atomically(path, secrets.token_hex(8))
        return path.read_text()


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UserError(f"tune.py needs Optuna: {installation('tune')}") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
