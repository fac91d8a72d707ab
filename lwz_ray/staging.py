"""Weights on their way into an engine: private files in a folder on the engine's host, one folder a writer.

The folder's name carries its writer's process id and start time, so that a later run can clear what a killed one left.
"""

import json
import os
import re
import shutil
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

from lwz_ray.disk import VERSIONS_HELD
from lwz_ray.errors import InfrastructureError
from lwz_ray.weights import Bucket, BucketHeader, unpack

PREFIX = "lwz_ray-weights-"
START_TOLERANCE_S = 5.0
_NAME = re.compile(PREFIX + r"(\d+)-(\d+)-[0-9a-f]+")


class StagingFolder:
    """Buckets as files of mode 0600 below a folder of mode 0700; a header is written after its bytes."""

    def __init__(self, candidates: tuple[str, ...], needed_bytes: int) -> None:
        """Create the folder in the first candidate with room for `needed_bytes`; clear leftovers of dead writers."""
        for parent in candidates:
            sweep(parent)
        parent = _first_with_room(candidates, needed_bytes)
        me = psutil.Process()
        name = f"{PREFIX}{me.pid}-{int(me.create_time())}-{uuid.uuid4().hex[:8]}"
        self.root = Path(parent) / name
        self.root.mkdir(mode=0o700)

    def write(self, bucket: Bucket, below: str = "") -> str:
        """Write one bucket and then its header; return the header's path. below: a folder in this one."""
        folder = self.root / below
        folder.mkdir(mode=0o700, exist_ok=True)
        stem = folder / f"v{bucket.header.policy_version:06d}_{bucket.header.index:05d}"
        _write_private(stem.with_suffix(".bin"), bucket.payload.data)
        header = stem.with_suffix(".json")
        _write_private(header, json.dumps(asdict(bucket.header)).encode())
        return str(header)

    def clear(self) -> None:
        """Delete every staged file and keep the folder."""
        for path in self.root.glob("v*"):
            path.unlink(missing_ok=True)

    def discard(self, below: str) -> None:
        """Delete a folder in this one, with what was written there."""
        shutil.rmtree(self.root / below, ignore_errors=True)

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.root, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class StagedWeights:
    """One complete policy version on a host: its buckets in order. Empty on ranks that write nothing."""

    policy_version: int
    header_paths: tuple[str, ...]
    num_bytes: int
    """Of all buckets, headers left out."""


class StagedVersions:
    """The newest complete policy version, kept for engines that join late, and beside it the one that is being written.

    Each has a folder of its own, so that a version can be staged again while engines still read the first. What is
    older than the newest goes when `drop_older` is called, or when the next is begun: two exist at most. Safe to call
    from several threads; `stage` from one at a time.
    """

    def __init__(self, candidates: tuple[str, ...], version_bytes: int) -> None:
        """Find a folder with room for two versions of `version_bytes`. Raises InfrastructureError where none has it."""
        self._folder = StagingFolder(candidates, VERSIONS_HELD * version_bytes)
        self._lock = threading.Lock()
        self._complete: list[str] = []
        self._num_begun = 0

    def stage(self, policy_version: int, buckets: Iterable[Bucket]) -> StagedWeights:
        """Write every bucket, one in memory at a time; it becomes the newest when it is whole.

        Raises InfrastructureError where a file cannot be written; what was written of it is deleted.
        """
        self.drop_older()
        self._num_begun += 1
        name = f"staged-{self._num_begun:06d}"
        paths: list[str] = []
        num_bytes = 0
        try:
            for bucket in buckets:
                paths.append(self._folder.write(bucket, name))
                num_bytes += bucket.header.num_bytes
                del bucket  # before the next is filled
        except BaseException as error:
            self._folder.discard(name)
            if isinstance(error, OSError):
                raise InfrastructureError(
                    f"policy version {policy_version} could not be staged in {self._folder.root} ({error}); "
                    f"set weights.staging_dir to a local folder with room for {VERSIONS_HELD} versions of the weights"
                ) from error
            raise
        with self._lock:
            self._complete.append(name)
        return StagedWeights(policy_version, tuple(paths), num_bytes)

    def drop_older(self) -> None:
        """Delete what is complete and not the newest: every engine has a later version."""
        with self._lock:
            older, self._complete = self._complete[:-1], self._complete[-1:]
        for name in older:
            self._folder.discard(name)

    def remove(self) -> None:
        """Delete everything."""
        self._folder.remove()


def read_header(header_path: str) -> BucketHeader:
    """Return what a staged bucket says of itself; its bytes are not looked at."""
    return BucketHeader.from_dict(json.loads(Path(header_path).read_text()))


def read_bucket(header_path: str) -> Bucket:
    """Return a staged bucket to pass on, not verified: whoever loads it does."""
    return Bucket(read_header(header_path), np.fromfile(Path(header_path).with_suffix(".bin"), dtype=np.uint8))


def check_one_version(header_paths: Sequence[str]) -> None:
    """Raise ValueError unless the buckets are of one policy version, each there once, in order from the first."""
    headers = [read_header(path) for path in header_paths]
    seen = [(header.policy_version, header.index) for header in headers]
    if seen != [(seen[0][0], index) for index in range(len(seen))]:
        raise ValueError(f"buckets of an update are out of order or mixed: (policy version, index) {seen}")


def read_staged(header_path: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of one staged bucket, verified before the first is handed out."""
    bucket = read_bucket(header_path)
    yield from unpack(bucket.header, bucket.payload)


def sweep(parent: str) -> list[str]:
    """Delete staging folders whose writer no longer runs; return their names."""
    gone = []
    for path in Path(parent).glob(f"{PREFIX}*"):
        writer = _NAME.fullmatch(path.name)
        if writer and not _alive(int(writer[1]), int(writer[2])):
            shutil.rmtree(path, ignore_errors=True)
            if not path.exists():
                gone.append(path.name)
    return gone


def _alive(pid: int, started: int) -> bool:
    """Compare to a few seconds: a start time is computed from the boot time, which moves when the clock is set."""
    try:
        return abs(psutil.Process(pid).create_time() - started) <= START_TOLERANCE_S
    except psutil.NoSuchProcess:
        return False


def _first_with_room(candidates: tuple[str, ...], needed_bytes: int) -> str:
    free = {}
    for parent in candidates:
        if os.path.isdir(parent) and os.access(parent, os.W_OK):
            free[parent] = shutil.disk_usage(parent).free
            if free[parent] >= needed_bytes:
                return parent
    seen = ", ".join(f"{p} has {b / 2**20:.0f} MiB" for p, b in free.items()) or "none is writable"
    raise InfrastructureError(
        f"no folder can stage {needed_bytes / 2**20:.0f} MiB of weights (tried {', '.join(candidates)}: {seen}); "
        "set weights.staging_dir to a local folder with room"
    )


def _write_private(path: Path, data: bytes | memoryview) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as handle:
        handle.write(data)
