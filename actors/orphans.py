"""Ends an engine whose Ray actor is gone: killed outright, the actor cannot end vLLM's child processes itself.

Ray actor ──▶ EngineCore ──▶ Worker (watches), or  Ray actor ──▶ EngineCore with the worker inside (watches)
"""

import os
import signal
import threading
import time
from collections.abc import Callable

import psutil

CHECK_EVERY_S = 2.0


def watch(parent_pid: int, grandparent_pid: int, when_over: Callable[[], None]) -> threading.Thread:
    """Start a thread that waits until the parent ends or loses its own parent, kills it, and calls `when_over`."""

    def run() -> None:
        while _still(parent_pid, grandparent_pid):
            time.sleep(CHECK_EVERY_S)
        when_over()

    thread = threading.Thread(target=run, name="orphan watch", daemon=True)
    thread.start()
    return thread


def _still(parent_pid: int, grandparent_pid: int) -> bool:
    try:
        if psutil.Process(parent_pid).ppid() == grandparent_pid:
            return True
        os.kill(parent_pid, signal.SIGKILL)
    except (psutil.NoSuchProcess, ProcessLookupError):
        pass
    return False


def end_when_orphaned() -> None:
    """Make this process end with its parent, and both of them with the grandparent."""
    parent_pid = os.getppid()
    watch(parent_pid, psutil.Process(parent_pid).ppid(), lambda: os._exit(1))
