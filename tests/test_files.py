"""Locks that users share, and files that are replaced together."""

import errno
import os
import signal
import sqlite3
import stat
import tempfile
from pathlib import Path

import pytest
from conftest import NOBODY, needs_root

from cifar_lightning.errors import UserError
from cifar_lightning.system.files import (
    check_inside,
    check_replaceable,
    check_writable,
    is_disk_full,
    is_unfinished,
    remove_unfinished,
    share_with_others,
    temporary_folder,
    write_all,
)
from cifar_lightning.system.locks import alone, check_lock, locked


@pytest.fixture
def shared():
    """A folder that everybody may write in, sticky like the temporary one."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o1777)
        yield Path(folder)


def as_nobody(function):
    """Call a function in a process of another user; return the error's text, or None."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            function()
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as stream:
        return stream.read() or None


def lock(path):
    with alone(path, "held"):
        pass


@needs_root
@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_a_lock_of_another_user(shared, mode):
    """It can be locked if it can be read; else the line names it."""
    path = shared / "x.lock"
    path.touch()
    path.chmod(mode)
    if mode & 0o044:
        assert as_nobody(lambda: lock(path)) is None
        with alone(path, "held"):  # and it does keep the other one out
            assert as_nobody(lambda: lock(path)) == "UserError: held; let it finish"
    else:
        refused = f"UserError: {path}: needs a lock file here (Permission denied)"
        assert as_nobody(lambda: lock(path)).startswith(refused)


@needs_root
def test_a_lock_is_taken_over_from_another_user(shared):
    path = shared / "x.lock"
    path.touch()
    os.chown(path, NOBODY, NOBODY)
    with alone(path, "held"):  # with O_CREAT even root is refused in a sticky folder
        pass


def test_a_lock_is_made_for_all_who_may_write_in_its_folder(shared):
    before = os.umask(0o077)
    try:
        lock(shared / "a.lock")
        (shared / "own").mkdir(mode=0o755)
        (shared / "own").chmod(0o755)
        lock(shared / "own" / "b.lock")
    finally:
        os.umask(before)
    assert stat.S_IMODE((shared / "a.lock").stat().st_mode) == 0o666
    assert stat.S_IMODE((shared / "own" / "b.lock").stat().st_mode) == 0o644


def test_a_lock_excludes_and_is_let_go(tmp_path):
    path = tmp_path / "x.lock"
    with alone(path, "busy"):
        with pytest.raises(UserError, match="busy; let it finish"), alone(path, "busy"):
            pass
        path.unlink()  # as the one who held it may: a new file is a new lock
        with alone(path, "busy"):
            pass
    with alone(path, "busy"):
        pass


@pytest.mark.parametrize("kind", ["fifo", "folder", "link", "no folder"])
def test_odd_lock_files_are_refused(tmp_path, kind):
    path = tmp_path / "x.lock"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "mine")
    else:
        path = tmp_path / "none" / "x.lock"
    for ask in (check_lock, lock):
        with pytest.raises(UserError) as refused:
            ask(path)
        assert str(refused.value).startswith(f"{path}: ")
    assert not (tmp_path / "mine").exists()
    check_lock(tmp_path / "new.lock")
    assert not (tmp_path / "new.lock").exists()


def test_waiting_is_said_once_and_ends_with_ctrl_c(tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    looks = []

    def check():
        looks.append(True)
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("cifar_lightning.system.signals.check", check)
    path = tmp_path / "x.lock"
    with alone(path, "busy"), pytest.raises(KeyboardInterrupt), locked(path, "waiting for it"):
        pass
    assert caplog.messages == [f"waiting for it ({path})"]


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_several_files_are_replaced_together(failing, tmp_path, monkeypatch):
    """A disk that is full at any of them leaves all old ones."""
    old = {f"{n}.txt": f"old {n}" for n in range(3)}
    write_all(tmp_path, old)
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_all(tmp_path, dict.fromkeys(old, "new"))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == old


def test_a_full_disk_has_many_names():
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    for error in (*map(OSError, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), ["x"] * 3), full):
        assert is_disk_full(error)
        made = RuntimeError("of a library")
        made.__cause__ = error
        assert is_disk_full(made)
    for error in (OSError(errno.EACCES, "x"), sqlite3.OperationalError("locked"), OSError("x")):
        assert not is_disk_full(error)


def test_links_out_of_the_outputs(tmp_path):
    outputs = tmp_path / "outputs"
    (outputs / "runs").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (outputs / "inside").symlink_to(outputs / "runs")
    (outputs / "report").symlink_to(tmp_path / "elsewhere")
    (outputs / "circle").symlink_to(outputs / "circle")
    (tmp_path / "alias").symlink_to(outputs)
    for good in ("runs/x", "inside/x", "new/x/y", "."):
        check_inside(outputs, outputs / good)
    check_inside(tmp_path / "alias", tmp_path / "alias" / "runs")  # the user's own choice
    check_inside(outputs, tmp_path / "elsewhere")  # this, too
    for bad in ("report", "report/x", "runs/../report"):
        with pytest.raises(UserError, match="leads out of"):
            check_inside(outputs, outputs / bad)


@needs_root
@pytest.mark.parametrize(("mode", "umask", "shared"), [
    (0o777, 0o022, True), (0o777, 0o077, True), (0o755, 0o002, False), (0o1777, 0o002, False),
])  # fmt: skip
def test_what_is_made_in_a_shared_folder_is_shared(mode, umask, shared):
    """Another user can go on with it, whatever the umask; elsewhere the umask is as before."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder)
        outputs.chmod(mode)
        before = os.umask(umask)
        try:
            share_with_others(outputs)
            write_all(outputs / "runs" / "one", {"run.json": "mine"})
        finally:
            os.umask(before)
        assert stat.S_IMODE((outputs / "runs").stat().st_mode) == 0o777 & ~(0 if shared else umask)

        def goes_on():
            write_all(outputs / "runs" / "one", {"run.json": "theirs"})
            with (outputs / "runs" / "one" / "train.log").open("a"):
                pass

        refused = as_nobody(goes_on)
        assert refused is None if shared else refused.startswith("PermissionError")


def test_a_group_shares_with_the_group_alone(tmp_path):
    tmp_path.chmod(0o2775)
    before = os.umask(0o077)
    try:
        share_with_others(tmp_path)
        assert os.umask(0o077) == 0o007
        share_with_others(tmp_path / "not there yet")
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)


def test_the_temporary_folder_is_never_the_current_one(tmp_path, monkeypatch):
    """There each user's lock file would be another one."""
    monkeypatch.chdir(tmp_path)
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(UserError, match="TMPDIR: must be a folder that can be written to"):
        temporary_folder()
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # unless it was asked for
    assert temporary_folder() == tmp_path
    monkeypatch.setattr("tempfile.gettempdir", lambda: (_ for _ in ()).throw(FileNotFoundError()))
    with pytest.raises(UserError, match="/var/tmp"):
        temporary_folder()


@needs_root
def test_folders_that_can_not_be_written(shared):
    (shared / "file").touch()
    (shared / "own").mkdir(mode=0o755)
    assert as_nobody(lambda: check_writable(shared / "new" / "newer")) is None
    for folder in ("own", "own/new"):
        refused = as_nobody(lambda folder=shared / folder: check_writable(folder))
        assert refused.startswith(f"UserError: {shared / folder}: can't be written to")
    with pytest.raises(UserError, match="file is no folder"):
        check_writable(shared / "file" / "new")


@needs_root
def test_what_another_user_owns_in_a_sticky_folder_is_found_before(shared):
    table = shared / "results.csv"
    check_replaceable(table)
    table.touch()
    refused = f"UserError: {table}: can't be replaced: it is another"
    assert as_nobody(lambda: check_replaceable(table)).startswith(refused)
    shared.chmod(0o777)
    assert as_nobody(lambda: check_replaceable(table)) is None
    shared.chmod(0o755)
    assert "can't be written to" in as_nobody(lambda: check_replaceable(table))


def test_only_what_this_project_was_writing_is_removed(tmp_path):
    """Names that are like ours, folders and links among them, are the user's."""
    for name in (".backup.2024", ".notes-v1.2", ".results.csv.123", ".cifar-lightning-notes"):
        (tmp_path / name).write_text("mine")
    (tmp_path / ".old.2024").mkdir()
    (tmp_path / ".cifar-lightning-1-folder").mkdir()
    (tmp_path / ".cifar-lightning-1-link").symlink_to(tmp_path / ".backup.2024")
    before = {path.name for path in tmp_path.iterdir()}
    if (child := os.fork()) == 0:  # is killed while it writes
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        write_all(tmp_path, {"results.csv": "half"})
    os.waitpid(child, 0)
    (left,) = {path.name for path in tmp_path.iterdir()} - before
    assert is_unfinished(tmp_path / left)
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == before
