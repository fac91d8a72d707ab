"""Ends an engine whose Ray actor is gone: killed outright, the actor cannot end vLLM's child processes itself.

Ray actor ──▶ EngineCore ──▶ Worker (watches), or  Ray actor ──▶ EngineCore with the worker inside (watches)

On Linux the kernel ends each with its parent, also one that is stopped (SIGSTOP). The watcher, a thread of the worker,
needs no such kernel, but does nothing while its own process is stopped.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import psutil

from lwz_ray.errors import WaitTimeoutError

CHECK_EVERY_S = 2.0
KILL_TIMEOUT_S = 10.0
PR_SET_PDEATHSIG = 1
"""Of Linux's prctl(2)."""


def watch(parent_pid: int, grandparent_pid: int, when_over: Callable[[], None]) -> threading.Thread:
    """Start a thread that waits until the parent ends or loses its own parent, kills it, and calls `when_over`."""

    def run() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):  # raised too where the number belongs to another by now
            parent = psutil.Process(parent_pid)
            while parent.ppid() == grandparent_pid:
                time.sleep(CHECK_EVERY_S)
            parent.kill()
        when_over()

    thread = threading.Thread(target=run, name="orphan watch", daemon=True)
    thread.start()
    return thread


def end_when_orphaned() -> None:
    """Make this process end with its parent, and both of them with the grandparent."""
    parent_pid = os.getppid()
    watch(parent_pid, psutil.Process(parent_pid).ppid(), lambda: os._exit(1))
    end_with_parent()


def end_with_parent() -> None:
    """Let the kernel kill this process when its parent ends, stopped or not (Linux only).

    The parent, to the kernel, is the thread that started this process: it must live as long as this process should.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def process_tree() -> list[int]:
    """Return this process's id and those of every process below it."""
    return [os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))]


async def kill_children() -> list[int]:
    """Kill every process below this one, stopped ones too; return their ids once they are gone.

    Raises WaitTimeoutError where one is still there after KILL_TIMEOUT_S.
    """
    children = psutil.Process().children(recursive=True)
    for child in children:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    end = time.monotonic() + KILL_TIMEOUT_S
    while left := [child.pid for child in children if _lives(child)]:
        if time.monotonic() > end:
            raise WaitTimeoutError(f"the engine's processes {left} to be gone", KILL_TIMEOUT_S)
        await asyncio.sleep(0.05)
    return [child.pid for child in children]


def _lives(process: psutil.Process) -> bool:
    """Tell whether it runs; one that ended and was not asked about by its parent yet does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
