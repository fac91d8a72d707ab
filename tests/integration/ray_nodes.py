"""Ray nodes of a test's own on this machine, with token authentication, which it ends itself."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.integration.harness import REPO_ROOT, Child, Finished, environment

BIN = Path(sys.executable).parent
HEAD_PORTS = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port", "metrics-export-port")
WORKER_PORTS = ("dashboard-agent-listen-port", "metrics-export-port")
ANY_WORKER_PORT = ("--min-worker-port=0", "--max-worker-port=0")
"""Two nodes of one machine must not count upwards from the same port."""


@dataclass
class RayNodes:
    """Nodes whose files lie in one folder; `env` holds the dashboard's address and a home without any token."""

    folder: Path
    env: dict[str, str]
    token: str = ""
    address: str = ""
    """Of the head, host:port."""
    children: list[Child] = field(default_factory=list)

    @property
    def token_file(self) -> Path:
        return Path(self.env["HOME"]) / ".ray" / "auth_token"

    def ray(self, *words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run one of Ray's commands to its end."""
        command = [str(BIN / "ray"), *words]
        return subprocess.run(command, env=dict(env or self.env), capture_output=True, text=True, timeout=60, cwd="/")

    def start_head(self, command: Sequence[str], *options: str) -> None:
        """Start the head and wait until its dashboard answers to the token."""
        ports = dict(zip(HEAD_PORTS, free_ports(len(HEAD_PORTS)), strict=True))
        self.address = f"127.0.0.1:{ports['port']}"
        words = ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--object-store-memory=500000000"]
        words += [f"--{key}={port}" for key, port in ports.items()]
        child = self._start([*command, *words, f"--temp-dir={self.folder}/ray", *options], self.env)
        # Ray's job client sends the token only where the mode is set; the head has found it by itself.
        self.env |= {"RAY_AUTH_MODE": "token", "RAY_ADDRESS": f"http://127.0.0.1:{ports['dashboard-port']}"}
        child.wait_until(lambda: self.ray("job", "list").returncode == 0, 90, "the dashboard to answer")

    def start_worker(self, command: Sequence[str], host: str, env: Mapping[str, str], *options: str) -> Child:
        """Start another node on this machine, under another loopback address."""
        ports = [f"--{key}={port}" for key, port in zip(WORKER_PORTS, free_ports(len(WORKER_PORTS)), strict=True)]
        words = [f"--node-ip-address={host}", "--object-store-memory=500000000", *ports, *options]
        return self._start([*command, *words], env)

    def submit(self, *words: str, timeout_s: float = 200.0) -> Finished:
        """Submit the front door from the repository's folder and wait for the job's end."""
        command = [BIN / "ray", "job", "submit", "--working-dir", ".", "--", "python", "-m", "lwz_ray.main", *words]
        log = self.folder / f"job-{len(list(self.folder.glob('job-*')))}.txt"
        return Child([str(c) for c in command], log, REPO_ROOT, self.env).finish(timeout_s)

    def _start(self, command: Sequence[str], env: Mapping[str, str]) -> Child:
        child = Child(command, self.folder / f"node-{len(self.children)}.txt", REPO_ROOT, env)
        self.children.append(child)
        return child

    def stop(self) -> None:
        """Ask the nodes to end, the head last, then kill what still names the cluster's own folder."""
        for child in reversed(self.children):
            child.process.terminate()
            try:
                child.process.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
        mine = [p for p in psutil.process_iter(["cmdline"]) if self._is_mine(p.info["cmdline"])]
        for process in mine:
            process.kill()
        psutil.wait_procs(mine, timeout=10)

    def _is_mine(self, command: Sequence[str] | None) -> bool:
        return any(str(self.folder) in word for word in command or ())


@contextmanager
def own_ray_nodes() -> Iterator[RayNodes]:
    """Yield a place for nodes, without any yet; at the end its processes, and no one else's, are ended by their ids."""
    # Ray puts sockets below this folder, and a socket's path may have 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="lwz", dir="/tmp", ignore_cleanup_errors=True) as name:
        (Path(name) / "home").mkdir()
        # Ray strips nothing from PATH: the job's `python` is this environment's.
        env = environment(HOME=f"{name}/home", PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}")
        nodes = RayNodes(Path(name), {k: v for k, v in env.items() if not k.startswith("RAY_AUTH")})
        try:
            yield nodes
        finally:
            nodes.stop()


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def holders_of(token: str, folder: Path) -> list[str]:
    """Return the files below a folder that hold the token; sockets and pipes hold nothing."""
    files = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
    return [str(p) for p in files if token.encode() in _content(p)]


def _content(file: Path) -> bytes:
    """Return what is in a file; nothing where it is gone: Ray renames its temporary files at any moment."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""
