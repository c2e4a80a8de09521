"""Ctrl-C and its like: an end at once where nothing is lost, else where the work looks for it."""

import signal
from contextlib import suppress

import pytest

from cifar_lightning.errors import Interrupted
from cifar_lightning.system import signals


@pytest.fixture(autouse=True)
def handlers():
    with signals.handled():
        yield


def press(number=signal.SIGINT):
    signal.raise_signal(number)


def test_a_signal_ends_at_once_or_waits_to_be_looked_for():
    with signals.deferred():
        press()
        with pytest.raises(Interrupted, match="interrupted"):
            signals.check()
    with pytest.raises(Interrupted), signals.deferred(), signals.immediate():
        pytest.fail("one that has come ends it before")


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_long_work_inside_what_defers_ends_at_once(number):
    with signals.deferred():
        with pytest.raises(Interrupted) as ended, signals.immediate():
            press(number)
        assert ended.value.exit_status == 128 + number
        assert signals._deferring  # again


def test_it_ends_whatever_a_library_makes_of_the_signal():
    def another_error():
        try:
            press()
        except KeyboardInterrupt:
            raise RuntimeError("a compiler failed") from None

    def nothing():
        with suppress(BaseException):
            press()

    for library in (another_error, nothing):
        signals._received = None
        with signals.deferred(), pytest.raises(Interrupted), signals.immediate():
            library()


def test_other_errors_stay_what_they_are():
    with signals.deferred(), pytest.raises(KeyError), signals.immediate():
        raise KeyError


def test_what_is_inside_can_defer_again():
    steps = []

    def work():
        with signals.deferred():
            press()
            steps.append("to its end")

    with signals.deferred(), pytest.raises(Interrupted), signals.immediate():
        work()
    assert steps == ["to its end"]
