"""Ranks that share rows compute what one rank computes: loss, gradients, logprobs and entropies."""

from pathlib import Path
from typing import Any

import pytest
import torch

from learners.sequence_parallel import SequenceGroup, key_value_repeats
from tests.learner_parts import meeting_address, run_ranks
from tests.sequence_parts import share_rows, share_rows_with_zero3
from tests.small_model import write_small_model

CASES = {"pairs": (2, 2), "one key head": (2, 1), "two rows of two": (2, 2), "all four": (4, 2)}
"""Ranks that share a row, and key-value heads beside 4 query heads."""


def run(folder: Path, world_size: int, cases: dict[str, str]) -> list[dict[str, Any]]:
    """Run cases (name -> `shared ranks:model folder`) in one set of processes; return what each rank saw."""
    addresses = ",".join(meeting_address() for _ in cases)
    arguments = (world_size, addresses, ",".join(f"{k}={v}" for k, v in cases.items()), str(folder))
    if world_size == 1:
        share_rows(0, *arguments)
    else:
        run_ranks(share_rows, world_size, arguments)
    return [torch.load(folder / f"rank_{r}.pt", weights_only=False) for r in range(world_size)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Return a model folder for each number of key-value heads."""
    return {n: write_small_model(tmp_path_factory.mktemp(f"kv{n}"), num_key_value_heads=n) for n in (1, 2)}


@pytest.fixture(scope="module")
def seen(models: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what was seen alone, by key-value heads, and by the ranks of every case."""
    alone = run(tmp_path_factory.mktemp("alone"), 1, {str(n): f"1:{path}" for n, path in models.items()})[0]
    out: dict[str, Any] = {"alone": alone}
    for world_size, names in ((2, ("pairs", "one key head")), (4, ("two rows of two", "all four"))):
        cases = {name: f"{CASES[name][0]}:{models[CASES[name][1]]}" for name in names}
        ranks = run(tmp_path_factory.mktemp(f"world_{world_size}"), world_size, cases)
        out |= {name: [rank[name] for rank in ranks] for name in names}
    return out


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch", [0, 1])
def test_loss_and_gradients_are_those_of_one_rank(seen: dict[str, Any], case: str, batch: int) -> None:
    alone = seen["alone"][str(CASES[case][1])][batch]
    for rank in seen[case]:
        found = rank[batch]
        assert found["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert found["norm"] == pytest.approx(alone["norm"], rel=1e-5)
        assert list(found["gradients"]) == list(alone["gradients"])
        off = sum((found["gradients"][k] - g).double().square().sum().item() for k, g in alone["gradients"].items())
        whole = sum(g.double().square().sum().item() for g in alone["gradients"].values())
        assert (off / whole) ** 0.5 < 1e-5


@pytest.mark.parametrize("case", ["pairs", "one key head", "all four"])
def test_every_rank_gets_the_whole_row(seen: dict[str, Any], case: str) -> None:
    alone, short, _ = seen["alone"][str(CASES[case][1])]
    assert (alone["num_tokens"], short["num_tokens"]) == ([47, 44, 42], [13])  # 2 divides some of them, 4 one
    for rank in seen[case]:
        for name in ("logprobs", "entropies"):
            torch.testing.assert_close(rank[0][name], alone[name], rtol=0, atol=1e-5)
            assert torch.equal(rank[0][name], seen[case][0][0][name])


def test_two_rows_at_once_of_which_one_is_empty(seen: dict[str, Any]) -> None:
    # One sample for two pairs of ranks: the second pair's row is one untrained token, of which one rank holds nothing.
    assert [rank[1]["num_tokens"] for rank in seen["two rows of two"]] == [[13], [13], [1], [1]]
    assert [rank[0]["num_tokens"] for rank in seen["two rows of two"]] == [[47, 25], [47, 25], [35, 26], [35, 26]]


@pytest.mark.parametrize("case", CASES)
def test_the_trainer_counts_a_shared_row_once(seen: dict[str, Any], case: str) -> None:
    alone = seen["alone"][str(CASES[case][1])][2]
    assert alone["train/tokens"] == 106.0
    for rank in seen[case]:
        for key in ("loss", "tokens", "grad_norm", "entropy", "kl", "mismatch", "clip_fraction"):
            assert rank[2][f"train/{key}"] == pytest.approx(alone[f"train/{key}"], rel=1e-5), key


def test_zero_3_shares_rows_too(
    models: dict[int, Path], seen: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("zero3")
    run_ranks(share_rows_with_zero3, 2, (2, meeting_address(), str(models[2]), str(folder)))
    alone = seen["alone"]["2"][0]
    for r in range(2):
        found = torch.load(folder / f"rank_{r}.pt", weights_only=False)
        assert found["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert found["norm"] == pytest.approx(alone["norm"], rel=1e-5)
        torch.testing.assert_close(found["logprobs"], alone["logprobs"], rtol=0, atol=1e-5)


def test_slices_of_a_row() -> None:
    row = torch.arange(10, 17)[None]
    slices = [SequenceGroup(None, r, 3).slice_row(row).tolist() for r in range(3)]
    assert slices == [[[10, 11, 12]], [[13, 14, 15]], [[16, 0, 0]]]
    positions = torch.tensor([2, 2, 3, 6, 0])
    own = [[x.tolist() for x in SequenceGroup(None, r, 3).own(positions, 3)] for r in range(3)]
    assert own == [[[0, 1, 4], [2, 2, 0]], [[2], [0]], [[3], [0]]]


def test_key_heads_are_repeated_as_few_times_as_will_do() -> None:
    # 8 query heads: 4 key heads over 2 ranks as they are; 2 over 4 ranks twice; 1 over 8 ranks 8 times.
    assert [key_value_repeats(8, kv, n) for kv, n in ((4, 2), (2, 4), (1, 8))] == [1, 2, 8]
    # 12 query heads, 4 key heads, 6 ranks: twice would not leave whole groups of 3, so one for each query head.
    assert key_value_repeats(12, 4, 6) == 3


def test_heads_that_cannot_be_shared_are_named() -> None:
    x = torch.zeros(1, 3, 5, 4)
    with pytest.raises(ValueError, match="3 attention heads cannot be shared by 2 ranks"):
        SequenceGroup(None, 0, 2).to_heads(x, x, x, 9)
