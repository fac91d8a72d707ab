"""Resident memory of this process, as Linux counts it: now, and the greatest since the last reset."""

import ctypes
import gc
from pathlib import Path

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""What proc(5) lets one write to clear_refs to set the peak back to the present."""


def resident_bytes() -> int:
    """Return this process's resident memory, mapped files included."""
    return _field("VmRSS")


def peak_bytes() -> int:
    """Return the greatest resident memory since the start or the last `settle`."""
    return _field("VmHWM")


def settle() -> int:
    """Give freed memory back to the system, set the peak to the present, and return the present resident memory."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR_REFS.write_text(RESET_PEAK)
    return resident_bytes()


def available_bytes() -> int:
    """Return what the machine could give a new process without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no line MemAvailable")


def _field(name: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{STATUS} has no line {name}")
