"""How the threads that compute wait for each other: spinning on free cores, asleep on busy ones.

torch's threads are OpenMP's. At the end of every operation they wait for the slowest by spinning,
which is quickest where each has a core of its own; beside another busy program a spinning thread
takes the core from the one it waits for, and a training step takes up to thirteen times as long.
Always asleep, it takes up to two thirds longer on an idle machine. Environment variables fix the
choice when the runtime is loaded, but for one rule: GNU's spins only for a moment while a process
has more OpenMP threads than cores (``GOMP_SPINCOUNT`` in its manual). So, as long as others are
busy, `computing` keeps threads that do nothing. Those that compute stay as they are, and so do
results, bit for bit.
"""

import ctypes
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from cifar_lightning.system.cores import affinity, limit_threads, others_seconds

log = logging.getLogger(__name__)

# Who sets one of these has chosen.
CHOSEN_BY = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
WINDOW_S = 0.5  # the kernel's counters tick every 10 ms
BUSY_ABOVE = 0.25  # of one core, used by others in a window: now asleep
FREE_BELOW = 0.10  # now spinning again, after so many windows
FREE_WINDOWS = 6


class LoadWatch:
    """Tells from time to time whether others keep this process's cores busy.

    It turns at once when they begin, and back only when they have been quiet for a while.

    Args:
        seconds: Tells for how long they have kept cores busy, as `cores.others_seconds`.
        now: Seconds on a clock.
    """

    def __init__(
        self,
        seconds: Callable[[], float] = others_seconds,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._seconds, self._now = seconds, now
        self._before = seconds(), now()
        self.quiet_windows = 0
        self.busy = False

    def look(self) -> bool:
        """Close the window since the last look, and tell whether others are busy."""
        seconds, now = self._seconds(), self._now()
        used = (seconds - self._before[0]) / max(now - self._before[1], 1e-9)
        self._before = seconds, now
        self.quiet_windows = self.quiet_windows + 1 if used < FREE_BELOW else 0
        if used > BUSY_ABOVE:
            self.busy = True
        elif self.quiet_windows >= FREE_WINDOWS:
            self.busy = False
        return self.busy


class ShortSpin(threading.Thread):
    """Threads of GNU's OpenMP runtime that do nothing, more than there are cores.

    Args:
        library: The runtime's file, as this process has it loaded.
    """

    def __init__(self, library: str) -> None:
        super().__init__(name="short-spin", daemon=True)
        self._library, self._held, self._end = library, threading.Event(), threading.Event()
        self.start()
        self._held.wait()

    def run(self) -> None:
        parallel = ctypes.CDLL(self._library).GOMP_parallel
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        # What each of them runs must not be Python: freeing nothing does nothing.
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)
        parallel(nothing, None, len(affinity()) + 1, 0)
        self._held.set()
        self._end.wait()  # a thread's helpers end with it

    def release(self) -> None:
        self._end.set()
        self.join()


def openmp_library() -> str | None:
    """Find GNU's OpenMP runtime that torch has loaded; None where it uses another one."""
    from threadpoolctl import threadpool_info

    found = [pool["filepath"] for pool in threadpool_info() if pool["prefix"] == "libgomp"]
    return next((path for path in found if "torch" in path), next(iter(found), None))


class _Adapter(threading.Thread):
    """Looks at the load again and again, and holds threads while others are busy."""

    def __init__(self, library: str) -> None:
        super().__init__(name="adaptive-waiting", daemon=True)
        self._library = library
        self._ended = threading.Event()
        self._changing = threading.Lock()  # around `_held` and `_paused`
        self._held: ShortSpin | None = None
        self._paused = 0

    def run(self) -> None:
        watch, told = LoadWatch(), False
        while not self._ended.wait(WINDOW_S):
            busy = watch.look()
            if busy and not told:
                told = True
                log.info("other programs keep this machine's cores busy: threads wait asleep")
            with self._changing:
                self._hold(busy and not self._paused)

    def _hold(self, wanted: bool) -> None:
        if wanted and self._held is None:
            self._held = ShortSpin(self._library)
        elif not wanted and self._held is not None:
            self._held.release()
            self._held = None

    @contextmanager
    def pause(self) -> Iterator[None]:
        with self._changing:
            self._paused += 1
            self._hold(False)
        try:
            yield
        finally:
            with self._changing:
                self._paused -= 1

    def end(self) -> None:
        self._ended.set()
        self.join()
        self._hold(False)


_adapter: _Adapter | None = None


@contextmanager
def computing() -> Iterator[None]:
    """Compute with as many threads as there are usable cores, waiting as the load asks for.

    Where the user has set one of `CHOSEN_BY`, or there is one thread, the waiting stays as it is.
    """
    global _adapter
    import torch  # heavy, and the callers have it

    limit_threads()
    chosen = any(name in os.environ for name in CHOSEN_BY)
    library = None if chosen or torch.get_num_threads() == 1 else openmp_library()
    if library is None or _adapter is not None:
        yield
        return
    _adapter = _Adapter(library)
    _adapter.start()
    try:
        yield
    finally:
        _adapter.end()
        _adapter = None


@contextmanager
def as_by_default() -> Iterator[None]:
    """Let threads wait as users have it meanwhile: what is timed is not to depend on the load."""
    with _adapter.pause() if _adapter else nullcontext():
        yield
