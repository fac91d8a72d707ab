"""An engine process ends when the process that started it is killed."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from actors.orphans import watch

ROOT = Path(__file__).parents[3]

OWNER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
print(child.pid, flush=True)
time.sleep(120)
"""


def test_a_child_ends_after_its_owner_is_killed() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    child = psutil.Process(int(owner.stdout.readline()))
    over = threading.Event()
    thread = watch(child.pid, owner.pid, over.set)
    time.sleep(0.5)
    assert child.is_running() and thread.is_alive()
    owner.kill()
    owner.wait(10)
    gone, _ = psutil.wait_procs([child], timeout=20)
    assert gone == [child]
    thread.join(10)
    assert over.is_set() and not thread.is_alive()


ACTOR = """
import subprocess, sys, time
core = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
print(core.pid, core.stdout.readline().strip(), flush=True)
time.sleep(120)
"""
CORE = """
import subprocess, sys, time
from actors.orphans import end_with_parent
end_with_parent()
worker = "from actors.orphans import end_when_orphaned; end_when_orphaned(); print('watches', flush=True)"
child = subprocess.Popen([sys.executable, "-c", worker + "; import time; time.sleep(120)"], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(120)
"""


@pytest.mark.parametrize("stopped", [("core",), ("worker",), ("core", "worker")])
def test_an_engine_that_is_stopped_ends_too_after_its_actor_is_killed(stopped: tuple[str, ...]) -> None:
    """Actor, engine core and worker, as vLLM has them; some of the latter two stopped, the actor killed."""
    actor = subprocess.Popen([sys.executable, "-c", ACTOR, CORE], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert actor.stdout is not None
    pids = dict(zip(("core", "worker"), map(int, actor.stdout.readline().split()), strict=True))
    processes = {name: psutil.Process(pid) for name, pid in pids.items()}
    try:
        for name in stopped:
            processes[name].suspend()
        actor.kill()
        actor.wait(10)
        gone, _ = psutil.wait_procs(list(processes.values()), timeout=20)
        assert set(gone) == set(processes.values())
    finally:
        for process in processes.values():
            if process.is_running():
                process.kill()


KILLER = """
import asyncio, os, signal, subprocess, sys
from actors.orphans import kill_children, process_tree
owners = [subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True) for _ in range(2)]
children = [int(owner.stdout.readline()) for owner in owners]
os.kill(owners[0].pid, signal.SIGSTOP)
os.kill(children[1], signal.SIGSTOP)
started = {*children, *(owner.pid for owner in owners)}
assert set(process_tree()) == {os.getpid(), *started}
assert set(asyncio.run(kill_children())) == started
print(*started, *(owner.wait(10) for owner in owners))
"""


def test_every_child_is_killed_stopped_or_not() -> None:
    """In a process of its own: this one may have children that other tests need."""
    command = [sys.executable, "-c", KILLER, OWNER]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, timeout=60, check=True)
    *pids, first, second = map(int, done.stdout.split())
    assert len(pids) == 4 and (first, second) == (-signal.SIGKILL, -signal.SIGKILL)
    assert not [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
