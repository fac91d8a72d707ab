"""Buckets on the wire: what goes in comes out, in order, and nothing damaged is handed out."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from lwz_ray.weights import Bucket, BucketHeader, CorruptBucketError, pack_buckets, unpack


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "embed": torch.randn(5, 4, generator=generator),  # 80 bytes
        "norm": torch.randn(3, generator=generator).bfloat16(),  # 6 bytes: what follows is not aligned to 4
        "up": torch.randn(4, 3, generator=generator).T,  # 48 bytes, not contiguous
        "down": torch.randn(7, generator=generator).half(),  # 14 bytes
        "scale": torch.tensor(2.5),  # 4 bytes, no dimension
    }


def packed(bucket_bytes: int) -> list[Bucket]:
    return list(pack_buckets(tensors().items(), policy_version=7, bucket_bytes=bucket_bytes))


@pytest.mark.parametrize(
    ("bucket_bytes", "layout"),
    [
        (1000, [["embed", "norm", "up", "down", "scale"]]),
        (100, [["embed", "norm"], ["up", "down", "scale"]]),  # 80 + 6 + 48 > 100; 48 + 14 + 4 = 66
        (66, [["embed"], ["norm", "up"], ["down", "scale"]]),  # 80 > 66 has one of its own; 6 + 48 + 14 > 66
        (1, [["embed"], ["norm"], ["up"], ["down"], ["scale"]]),
    ],
)
def test_layout_and_equality(bucket_bytes: int, layout: list[list[str]]) -> None:
    buckets = packed(bucket_bytes)
    assert [[t.name for t in b.header.tensors] for b in buckets] == layout
    assert [(b.header.policy_version, b.header.index) for b in buckets] == [(7, i) for i in range(len(layout))]
    out = [pair for b in buckets for pair in unpack(b.header, b.payload)]
    for (name, tensor), (wanted_name, wanted) in zip(out, tensors().items(), strict=True):
        assert (name, tensor.dtype, tensor.shape) == (wanted_name, wanted.dtype, wanted.shape)
        assert torch.equal(tensor, wanted)


def test_the_header_says_where_everything_lies() -> None:
    (bucket,) = packed(1000)
    assert [(t.dtype, t.shape, t.offset, t.num_bytes) for t in bucket.header.tensors] == [
        ("float32", (5, 4), 0, 80),
        ("bfloat16", (3,), 80, 6),
        ("float32", (3, 4), 86, 48),
        ("float16", (7,), 134, 14),
        ("float32", (), 148, 4),
    ]
    assert (bucket.header.num_bytes, bucket.payload.nbytes, bucket.payload.dtype) == (152, 152, np.uint8)


def test_the_checksum_is_crc_32() -> None:
    bits = torch.tensor([0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39], dtype=torch.uint8)
    (bucket,) = pack_buckets([("digits", bits)], 0, 100)
    assert bucket.header.checksum == 0xCBF43926  # the check value of CRC-32 over "123456789"


@pytest.mark.parametrize("position", [0, 85, 151])
def test_one_changed_bit_is_noticed_before_anything_is_handed_out(position: int) -> None:
    (bucket,) = packed(1000)
    bucket.payload[position] ^= 1
    with pytest.raises(CorruptBucketError, match="bucket 0 of policy version 7: checksum mismatch"):
        next(iter(unpack(bucket.header, bucket.payload)))


def test_a_short_payload_is_noticed() -> None:
    (bucket,) = packed(1000)
    with pytest.raises(CorruptBucketError, match="bucket 0 of policy version 7: 151 bytes, the header says 152"):
        next(iter(unpack(bucket.header, bucket.payload[:-1])))


def test_a_header_survives_a_dict() -> None:
    (bucket,) = packed(1000)
    raw = asdict(bucket.header)
    raw["tensors"] = [{**t, "shape": list(t["shape"])} for t in raw["tensors"]]  # as JSON returns it
    assert BucketHeader.from_dict(raw) == bucket.header
    assert BucketHeader.from_dict(raw) != replace(bucket.header, checksum=0)


def test_tensors_are_taken_one_bucket_at_a_time() -> None:
    taken: list[str] = []

    def stream():
        for name, tensor in tensors().items():
            taken.append(name)
            yield name, tensor

    buckets = pack_buckets(stream(), 1, 66)
    next(buckets)
    assert taken == ["embed", "norm"]
