"""Progress: of long work alone, a bar where somebody sees it, else a line now and then."""

import io
import logging
import threading
import time
from types import SimpleNamespace

import pytest

from cifar_lightning.system import progress
from cifar_lightning.system.locks import alone, locked
from cifar_lightning.system.progress import Progress, shown, tracked
from cifar_lightning.training.progress import Estimate


@pytest.fixture(autouse=True)
def heard(caplog, monkeypatch):
    """Hear what is said; a test's standard error is no terminal."""
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with caplog.at_level(logging.INFO):
        yield


@pytest.fixture
def clock(monkeypatch):
    """Give a clock that is set by hand."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.seconds)
    return now


def test_lines_become_rare(caplog, clock):
    """The first one after a while; two minutes of work have a handful."""
    with Progress("measuring", 100, "rounds") as work:
        for clock.seconds in range(1, 126):
            work.at(min(clock.seconds, 100), now="the next")
    assert caplog.messages == [
        "measuring: 10 of 100 rounds, 10 s so far, about 2 min left; now the next",
        "measuring: 30 of 100 rounds, 30 s so far, about 70 s left; now the next",
        "measuring: 70 of 100 rounds, 70 s so far, about 30 s left; now the next",
    ]


def test_what_is_short_says_nothing(caplog, clock):
    for clock.seconds in tracked(range(9), "composed", "jobs"):
        pass
    assert caplog.messages == []


def test_a_slow_step_is_told_while_it_lasts(caplog, monkeypatch):
    monkeypatch.setattr(progress, "FIRST_S", 0.02)
    for step in tracked(["a", "b"], "preparing", "candidates", str, slow_steps=True):
        while step == "b" and not caplog.messages:
            time.sleep(0.001)
    assert caplog.messages[0].startswith("preparing: ")
    assert "of 2 candidates" in caplog.messages[0]
    assert not [one for one in threading.enumerate() if one.name.endswith("(_look_after)")]


def test_none_where_none_is_wanted(caplog, monkeypatch):
    monkeypatch.setattr(progress, "FIRST_S", 0.0)
    with shown(False):
        for _ in tracked(range(3), "preparing", "candidates", slow_steps=True):
            pass
    assert caplog.messages == []
    for _ in tracked(range(3), "preparing", "candidates"):
        pass
    assert len(caplog.messages) == 3


@pytest.mark.parametrize("disabled", ["", "1"])
def test_a_bar_on_a_terminal(disabled, caplog, monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TQDM_DISABLE", disabled)
    monkeypatch.setattr(progress, "FIRST_S", 0.0)
    with Progress("measuring", 4, "rounds", slow_steps=not disabled) as work:
        work.at(1, 8, "B1, fp32")
    if disabled:
        assert terminal.getvalue() == ""
        assert caplog.messages[0].startswith("measuring: 1 of 8 rounds")
    else:
        assert "1/8" in terminal.getvalue()
        assert "B1, fp32" in terminal.getvalue()
        assert caplog.messages == []


def test_waiting_goes_on_saying_so(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(progress, "FIRST_S", 0.0)
    monkeypatch.setattr("cifar_lightning.system.locks.LOCK_POLL_S", 0.001)
    path, held = tmp_path / "lock", threading.Event()

    def hold():
        with alone(path, "held"):
            held.set()
            while len(caplog.messages) < 2:
                time.sleep(0.001)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    with locked(path, "waiting for another measurement"):
        pass
    holder.join()
    assert caplog.messages[0] == f"waiting for another measurement ({path})"
    assert caplog.messages[1] == "waiting for another measurement: 0 s so far"


@pytest.mark.parametrize("bar", [None, object()])
def test_a_long_epoch_without_a_bar(bar, caplog, clock):
    trainer = SimpleNamespace(
        current_epoch=1, max_epochs=3, num_training_batches=200, is_global_zero=True,
        progress_bar_callback=bar,
    )  # fmt: skip
    estimate = Estimate()
    estimate.on_train_start(trainer, None)
    estimate._steps = Estimate.STEP
    estimate.on_train_epoch_start(trainer, None)
    for clock.seconds in range(100):
        estimate.on_train_batch_end(trainer, None, None, None, clock.seconds)
    told = ["epoch 2 of 3: 61 of 200 batches, 60 s so far, about 2 min left"]
    assert caplog.messages == ([] if bar else told)
