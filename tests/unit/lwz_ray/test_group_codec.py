"""A group through JSON text and back is the same group."""

import json
from dataclasses import asdict, fields

import numpy as np
import pytest

from lwz_ray.errors import RewardFailure
from lwz_ray.group_codec import group_from_dict, group_to_dict
from lwz_ray.grouping import MadeGroup
from lwz_ray.records import Completion, Group, ParsedText, Prompt, Sample, VersionSpan


def made(length_range: tuple[int, int] | None) -> MadeGroup:
    prompt = Prompt("p-1", "写一封信。", "zh", length_range, 12)
    logprobs = np.array([-0.1, -1.0 / 3.0, -20.125], dtype=np.float32)
    spans = (VersionSpan(0, 1, 4), VersionSpan(1, 3, 5))
    completion = Completion("亲爱的</answer>", np.array([5, 49151, 0], dtype=np.int32), logprobs, "stop", spans)
    cut = Completion("", np.array([9], dtype=np.int32), np.array([-2.5], dtype=np.float32), "length", spans[:1])
    failure = RewardFailure("writing", "replica 1 died", "infrastructure")
    ids = np.array([1, 2], dtype=np.int32)
    samples = (
        Sample(3, 0, prompt, ids, completion, ParsedText("plan", "亲爱的", True, 1.0), 3, {"length": 0.1}, {"m": 0.2}),
        Sample(3, 1, prompt, ids, cut, ParsedText(None, None, False, 0.5), 0, {"length": 0.0, "writing": failure}),
    )
    return MadeGroup(Group(3, prompt, samples), generate_s=1.5, score_s=0.25, staleness=2)


def assert_same(a: object, b: object) -> None:
    """Compare record by record; arrays by dtype, shape and bits."""
    if isinstance(a, np.ndarray):
        assert isinstance(b, np.ndarray) and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif hasattr(a, "__dataclass_fields__"):
        assert type(a) is type(b)
        for f in fields(a):  # type: ignore[arg-type]
            assert_same(getattr(a, f.name), getattr(b, f.name))
    elif isinstance(a, tuple):
        assert isinstance(b, tuple) and len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b and type(a) is type(b)


@pytest.mark.parametrize("length_range", [(200, 300), None])
def test_round_trip_through_json_text(length_range: tuple[int, int] | None) -> None:
    group = made(length_range)
    back = group_from_dict(json.loads(json.dumps(group_to_dict(group), allow_nan=False)))
    assert_same(back.group, group.group)
    assert (back.generate_s, back.score_s) == (1.5, 0.25)


def test_staleness_is_measured_anew() -> None:
    assert group_from_dict(group_to_dict(made(None))).staleness == 0


def test_every_field_of_a_sample_is_kept() -> None:
    # A new field of a record has to reach the codec too.
    group = group_to_dict(made((200, 300)))
    assert set(group["prompt"]) == set(asdict(made(None).group.prompt))
    sample_fields = {f.name for f in fields(Sample)} - {"group_id", "prompt", "completion"}
    completion_fields = {f.name for f in fields(Completion)}
    assert set(group["samples"][0]) == sample_fields | completion_fields
