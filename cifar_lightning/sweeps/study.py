"""A study of trials that several processes, on one machine or more, work on.

Its file and locks lie in the outputs; given a storage, the trials lie there. A trial that a process
has begun is its own until it ends, or until the process does: then another one takes it up.
"""

import logging
import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, Self

from cifar_lightning.errors import (
    CifarLightningError,
    RunFailed,
    UserError,
    bad_value,
    reason_of,
)
from cifar_lightning.sweeps.claims import Claim
from cifar_lightning.sweeps.optuna_storage import import_optuna, of_storage, opened
from cifar_lightning.system.files import check_inside, is_disk_full, write_atomically
from cifar_lightning.system.locks import locked

log = logging.getLogger(__name__)

SEARCHES, JOURNAL = "searches", "journal.log"  # a folder of the outputs, and a file of a study's
OWNER = "owner"  # attribute of a trial: whose it is
UNCOUNTED = "uncounted"  # and that it is none of those asked for
KILLED = "the search was killed in it again and again"
Direction = Literal["minimize", "maximize"]


class Study:
    """An Optuna study, and the trials in it that this process works on.

    Attributes:
        name: Of everything that its trials share.
        outputs: Where its folder is.
        folder: Of its files.
        optuna: Optuna's own object.
        claims: The trials that this process is at, by their numbers.
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
        optuna = import_optuna()
        self.name, self.outputs, self.folder = name, outputs, outputs / SEARCHES / name
        check_inside(outputs, self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sampler = sampler
        self.claims: dict[int, Claim] = {}
        try:
            with self._beginning():  # two processes can't make a database's tables at once
                self.optuna = optuna.create_study(
                    storage=opened(storage, self.folder / JOURNAL),
                    study_name=name,
                    directions=directions,
                    load_if_exists=True,
                )
        except Exception as error:  # another user's, damaged, or a database's own
            if is_disk_full(error) or isinstance(error, CifarLightningError):
                raise
            if storage is None:
                path = self.folder / JOURNAL
                raise UserError(f"{path}: can't be used: {reason_of(error)}") from error
            shown = storage.partition("://")[0] + "://..."  # the rest may hold a password
            raise bad_value("storage", shown, f"a database ({reason_of(error)})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Release all trials.

        Raises:
            RunFailed: If the storage has failed.
        """
        self.release()
        if error is not None and of_storage(error):
            log.debug("storage failed", exc_info=error)
            reason = f"the study can't be read or written: {reason_of(error)}"
            raise RunFailed(f"{reason}; the same command again goes on") from error

    def release(self) -> None:
        """Let other processes have the trials that this one has taken and not ended."""
        while self.claims:
            self.claims.popitem()[1].release()

    @property
    def trials(self) -> list[Any]:
        """All trials, of every process."""
        found: list[Any] = self.optuna.get_trials(deepcopy=False)
        return found

    @property
    def ended(self) -> int:
        """How many trials have ended, well or not."""
        return sum(trial.state.is_finished() for trial in self.trials)

    @property
    def counted(self) -> int:
        """How many trials have begun, without those that are not counted."""
        return sum(UNCOUNTED not in trial.user_attrs for trial in self.trials)

    @property
    def in_vain(self) -> int:
        """How many trials ended last, one after the other, that are not counted."""
        ended = [trial.user_attrs for trial in self.trials if trial.state.is_finished()]
        return len([*takewhile(lambda attributes: UNCOUNTED in attributes, reversed(ended))])

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

        with self._beginning():
            trials = self.trials
            for left in trials:
                if left.state != TrialState.RUNNING or not self.owns(left):
                    continue
                if left.number in self.claims or not self._claim(left.number):
                    continue
                if self.trials[left.number].state.is_finished():  # in this very moment
                    self.claims.pop(left.number).end()
                elif self.claims[left.number].hopeless:
                    self._end(left.number, state=TrialState.FAIL)
                else:  # with the same settings, so its run continues
                    return Trial(self.optuna, left._trial_id)
            if self.counted >= count:
                return None
            self.optuna.sampler = self._sampler(len(trials))
            trial = self.optuna.ask()
            trial.set_user_attr(OWNER, self._owner)
            self._claim(trial.number)
            return trial

    def owns(self, trial: Any) -> bool:
        """Tell whether a trial belongs to these outputs: locks tell of their processes alone."""
        return bool(trial.user_attrs.get(OWNER) == self._owner)

    @property
    def elsewhere(self) -> list[str]:
        """The claims of trials that other processes with these outputs are at work on."""
        mine = {f"trial-{number}" for number in self.claims}
        found = []
        with self._beginning():
            there = {path.stem for path in self.folder.glob("trial-*.lock")} - mine
            for work in sorted(there, key=lambda one: (len(one), one)):
                if (claim := self.claim(work)) is None:
                    found.append(work)
                else:
                    claim.release()
        return found

    def wait_for(self, work: str) -> None:
        """Wait until no other process is at a piece of work."""
        with self.awaited(work) as claim:
            if not claim.killed:
                claim.end()  # it was ended, or this very claim has made its file

    def awaited(self, work: str) -> Claim:
        """Claim work as `claim` does, as soon as no other process is at it."""
        return Claim.awaited(self.folder / f"{work}.lock")

    def claim(self, work: str) -> Claim | None:
        """Claim work on this study, by a name; None if another process is at it."""
        return Claim.make(self.folder / f"{work}.lock")

    def tell(self, trial: Any, *values: float, counted: bool = True) -> None:
        """End a trial with its values; ``counted`` as for `fail`."""
        if not counted:
            trial.set_user_attr(UNCOUNTED, True)
        self._end(trial.number, values=values)

    def fail(self, trial: Any, reason: str, cause: str, counted: bool = True) -> None:
        """End a trial whose settings can't be used.

        Args:
            trial: The trial.
            reason: For people.
            cause: Equal for trials that fail alike.
            counted: Whether it is one of those asked for.
        """
        from optuna.trial import TrialState

        if not counted:
            trial.set_user_attr(UNCOUNTED, True)
        trial.set_user_attr("reason", reason)
        trial.set_user_attr("cause", cause)
        self._end(trial.number, state=TrialState.FAIL)

    def _beginning(self) -> AbstractContextManager[None]:
        """Let no other process look for a trial to take meanwhile."""
        waiting = f"waiting: {self.name} begins a trial elsewhere"
        return locked(self.folder / "begin.lock", waiting)

    def _end(self, number: int, **told: Any) -> None:
        self.optuna.tell(number, **told)
        self.claims.pop(number).end()

    def _claim(self, number: int) -> bool:
        """Make a trial this process's own; False if it is another one's."""
        claim = self.claim(f"trial-{number}")
        if claim is not None:
            self.claims[number] = claim
        return claim is not None

    @cached_property
    def _owner(self) -> str:
        """Name these outputs: locks tell of its processes alone whether they are alive."""
        path = self.folder / "owner"
        if not path.exists():
            write_atomically(path, secrets.token_hex(8))
        return path.read_text()
