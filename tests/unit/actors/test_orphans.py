"""An engine process ends when the process that started it is killed."""

import subprocess
import sys
import threading
import time

import psutil

from actors.orphans import watch

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
