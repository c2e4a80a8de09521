"""How much memory a network's calls take."""

import ctypes
import re
from contextlib import suppress
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")
NOW, PEAK = "VmRSS", "VmHWM"  # resident memory, as Linux calls it
RESET_PEAK = "5"  # what Linux wants to hear in clear_refs, so that VmHWM starts anew


class Memory:
    """Tells how far memory grows from its making on: this process's, or the GPU's.

    Args:
        device: Where the network is called.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with suppress(OSError, AttributeError):
            # What was freed, but kept for later, would be taken again without growth.
            ctypes.CDLL(None).malloc_trim(0)
        self._before = self._read(NOW)

    def forget_peak(self) -> None:
        """Leave out what memory was taken and given back until now, as by a preparation."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        with suppress(OSError):
            (_PROCESS / "clear_refs").write_text(RESET_PEAK)

    @property
    def growth(self) -> int | None:
        """The peak since then over what there was in the beginning, in bytes.

        None where the system does not tell.
        """
        peak = self._read(PEAK)
        if peak is None or self._before is None:
            return None
        return max(0, peak - self._before)

    def _read(self, key: str) -> int | None:
        if self._device.type == "cuda":
            peak = key == PEAK
            told = torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated
            return told(self._device)
        try:
            status = (_PROCESS / "status").read_text()
        except OSError:
            return None
        found = re.search(rf"^{key}:\s+(\d+) kB$", status, re.MULTILINE)
        return int(found[1]) * 1024 if found else None
