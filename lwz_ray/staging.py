"""Weights on their way into an engine: private files in a folder on the engine's host, one folder a writer.

The folder's name carries its writer's process id and start time, so that a later run can clear what a killed one left.
"""

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil
import torch

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

    def write(self, bucket: Bucket) -> str:
        """Write one bucket and then its header; return the header's path."""
        stem = self.root / f"v{bucket.header.policy_version:06d}_{bucket.header.index:05d}"
        _write_private(stem.with_suffix(".bin"), bucket.payload.data)
        header = stem.with_suffix(".json")
        _write_private(header, json.dumps(asdict(bucket.header)).encode())
        return str(header)

    def clear(self) -> None:
        """Delete every staged file and keep the folder."""
        for path in self.root.glob("v*"):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.root, ignore_errors=True)


def read_header(header_path: str) -> BucketHeader:
    """Return what a staged bucket says of itself; its bytes are not looked at."""
    return BucketHeader.from_dict(json.loads(Path(header_path).read_text()))


def read_staged(header_path: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of one staged bucket, verified before the first is handed out."""
    payload = np.fromfile(Path(header_path).with_suffix(".bin"), dtype=np.uint8)
    yield from unpack(read_header(header_path), payload)


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
