"""The wire format of weights: buckets of tensors with checksums.

A bucket is a flat byte array plus a header that says which tensors lie where. It is verified before it is loaded.
"""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class CorruptBucketError(RuntimeError):
    """A bucket's size or checksum does not match its header."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies in its bucket."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class BucketHeader:
    """What a bucket holds, and the checksum (CRC-32) of its bytes."""

    policy_version: int
    index: int
    tensors: tuple[TensorEntry, ...]
    num_bytes: int
    checksum: int

    @classmethod
    def from_dict(cls, raw: dict) -> "BucketHeader":
        tensors = tuple(TensorEntry(**{**t, "shape": tuple(t["shape"])}) for t in raw["tensors"])
        return cls(raw["policy_version"], raw["index"], tensors, raw["num_bytes"], raw["checksum"])


@dataclass(frozen=True, slots=True, eq=False)
class Bucket:
    """A header and its bytes, uint8 [num_bytes]."""

    header: BucketHeader
    payload: np.ndarray


def pack_buckets(
    tensors: Iterable[tuple[str, torch.Tensor]], policy_version: int, bucket_bytes: int
) -> Iterator[Bucket]:
    """Yield buckets of at most `bucket_bytes` (a larger tensor gets one of its own), in order.

    A tensor is copied into the bucket and dropped before the next is asked for: one bucket and one tensor exist at a
    time, if the caller drops each bucket before it asks for the next.
    """
    payload, entries, size, index = np.empty(0, np.uint8), list[TensorEntry](), 0, 0
    for name, tensor in tensors:
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        if entries and size + len(raw) > bucket_bytes:
            yield _bucket(payload[:size], policy_version, index, entries)
            payload, entries, size, index = np.empty(0, np.uint8), [], 0, index + 1
        if not entries:
            payload = np.empty(max(bucket_bytes, len(raw)), np.uint8)  # memory that is not written is not taken
        torch.from_numpy(payload[size : size + len(raw)]).copy_(raw)
        dtype = str(tensor.dtype).removeprefix("torch.")
        entries.append(TensorEntry(name, dtype, tuple(tensor.shape), size, len(raw)))
        size += len(raw)
        del tensor, raw
    if entries:
        yield _bucket(payload[:size], policy_version, index, entries)


def _bucket(payload: np.ndarray, policy_version: int, index: int, entries: list[TensorEntry]) -> Bucket:
    return Bucket(BucketHeader(policy_version, index, tuple(entries), len(payload), zlib.crc32(payload.data)), payload)


def verify(header: BucketHeader, payload: np.ndarray) -> None:
    """Raise CorruptBucketError unless size and checksum match the header."""
    where = f"bucket {header.index} of policy version {header.policy_version}"
    if payload.nbytes != header.num_bytes:
        raise CorruptBucketError(f"{where}: {payload.nbytes} bytes, the header says {header.num_bytes}")
    if zlib.crc32(payload.data) != header.checksum:
        raise CorruptBucketError(f"{where}: checksum mismatch")


def unpack(header: BucketHeader, payload: np.ndarray) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) views into the payload, verified first."""
    verify(header, payload)
    flat = torch.from_numpy(payload)
    for entry in header.tensors:
        raw, dtype = flat[entry.offset : entry.offset + entry.num_bytes], DTYPES[entry.dtype]
        # A tensor after one of a narrower type may lie between two of its own elements, where no view can start.
        raw = raw.clone() if entry.offset % dtype.itemsize else raw
        yield entry.name, raw.view(dtype).reshape(entry.shape)
