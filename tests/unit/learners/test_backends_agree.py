"""FSDP2 and DeepSpeed at every stage are one learner: equal steps, and nothing that is done between steps shows."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.parity_parts import PLACEMENTS, Difference, difference, job, markdown, run_jobs
from benchmarks.parity_parts import replace as with_changes
from tests import backend_parts
from tests.backend_parts import BUCKET_BYTES, DTYPES, KINDS, LENGTHS, NUM_ADDRESSES, OFFLOADED, STATES
from tests.learner_parts import batch, meeting_address, run_ranks, settings

TOLERANCE = 1e-5
ADAMW_TOLERANCE = 1e-4
"""AdamW divides by the gradient's size, so an element whose gradient is rounding noise moves by the rate, either way.

Of N elements that move alike, n that go the other way put two runs 2 sqrt(n / N) apart: 1e-3 for one of the 3 million
here. So the bound lets none turn round, and leaves room for noise in how far the smallest go (6e-7 was measured).
"""
FAULTY = 1.001
"""The planted gradient scale: one part in a thousand too much."""
LAYOUT = ("1 process, uneven rows", "FSDP2, 2 ranks, a row a sample")


@pytest.fixture(scope="module")
def differences(tiny_model_dir: Path) -> dict[tuple[str, str], Difference]:
    """Return (optimizer, run) -> how far three steps were from those of one process."""
    # Without clipping, which would hide a wrong scale; so large a rate that an update is not lost beside its weight.
    sgd = settings(tiny_model_dir, optimizer="sgd", lr=0.3, max_grad_norm=1e9)
    adamw = settings(tiny_model_dir, lr=1e-2)
    batches = [batch(lengths, seed=i + 1) for i, lengths in enumerate(LENGTHS)]
    jobs = {("sgd", p.name): job(p, sgd, batches) for p in PLACEMENTS}
    jobs |= {("adamw", p.name): job(p, adamw, batches) for p in PLACEMENTS}
    alone, fsdp = PLACEMENTS[0], PLACEMENTS[1]
    jobs["sgd", LAYOUT[0]] = job(alone, sgd, batches, budget=40)
    jobs["sgd", LAYOUT[1]] = job(fsdp, sgd, batches, budget=None)
    jobs["sgd", "faulty"] = with_changes(job(fsdp, sgd, batches), gradient_scale=FAULTY)
    tracks = dict(zip(jobs, run_jobs(list(jobs.values())), strict=True))
    found = {(optimizer, name): difference(t, tracks[optimizer, alone.name]) for (optimizer, name), t in tracks.items()}
    print("\n" + markdown([(f"{name}, {optimizer}", d) for (optimizer, name), d in found.items()]))
    return found


def agrees(found: Difference, update: float) -> bool:
    return found.loss <= TOLERANCE and found.norm <= TOLERANCE and found.update <= update


@pytest.mark.parametrize("name", [*(p.name for p in PLACEMENTS[1:]), *LAYOUT])
def test_three_sgd_steps_are_those_of_one_process(differences: dict[Any, Difference], name: str) -> None:
    assert agrees(differences["sgd", name], TOLERANCE), differences["sgd", name]


@pytest.mark.parametrize("name", [p.name for p in PLACEMENTS[1:]])
def test_three_adamw_steps_are_those_of_one_process(differences: dict[Any, Difference], name: str) -> None:
    assert agrees(differences["adamw", name], ADAMW_TOLERANCE), differences["adamw", name]


def test_a_wrong_gradient_scale_is_seen(differences: dict[Any, Difference]) -> None:
    faulty = differences["sgd", "faulty"]
    assert not agrees(faulty, TOLERANCE)
    assert faulty.norm == pytest.approx(1e-3, rel=0.2) and faulty.update == pytest.approx(1e-3, rel=0.2)


@pytest.fixture(scope="module")
def seen(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Return what the ranks of each run of `tests.backend_parts` saw."""
    folder = tmp_path_factory.mktemp("backends")
    for target, world_size in (
        (backend_parts.run_writers, 1),
        (backend_parts.run_two, 2),
        (backend_parts.run_readers, 1),
    ):
        addresses: Any = [meeting_address() for _ in range(NUM_ADDRESSES)]
        run_ranks(target, world_size, (world_size, addresses, str(tiny_model_dir), str(folder)))
    names = {"written_1": 1, "read_1": 1, "written_2": 2, "read_2": 2, "two": 2}
    return {
        name: [torch.load(folder / f"{name}_{r}.pt", weights_only=False) for r in range(ranks)]
        for name, ranks in names.items()
    }


def equal(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return list(some) == list(others) and all(torch.equal(t, others[n]) for n, t in some.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_swapped_weights_are_the_snapshot_and_leave_no_trace(seen: dict[str, Any], kind: str, dtype: str) -> None:
    for rank in seen["two"]:
        found = rank["swap", kind, dtype]
        at_start, trained, swapped, back = found["logprobs"]
        assert torch.equal(swapped, at_start) and torch.equal(back, trained)
        assert not torch.allclose(trained, at_start, atol=0.1)
        assert equal(found["never"], found["swapped"])


@pytest.mark.parametrize("kind", KINDS)
def test_publication_takes_one_bucket_and_one_tensor(seen: dict[str, Any], kind: str) -> None:
    for rank, found in enumerate(one["publication", kind] for one in seen["two"]):
        largest = found["largest_tensor"]
        assert largest == 1024 * 64 * 4
        # gloo's thread may hold the tensor before for a moment after its collective.
        assert 0 < found["streamed"] <= 2 * largest
        assert found["buckets_alive"] == 1
        assert found["whole"] > 4 * largest  # the same watch sees a publication that gathers everything first
        if rank == 0:
            assert found["num_buckets"] > 4 and found["largest_bucket"] <= BUCKET_BYTES


@pytest.mark.parametrize("kind", KINDS)
def test_only_adapters_are_trained_streamed_and_saved(seen: dict[str, Any], kind: str) -> None:
    for rank in seen["two"]:
        found = rank["frozen", kind]
        # Two of the seven linear layers of each of two decoder layers, with an A and a B each.
        assert len(found["adapters"]) == 8 and all(".lora_" in name for name in found["adapters"])
        for stage in ("after", "further"):
            moved = {n for n, t in found["before"].items() if not torch.equal(t, found[stage][n])}
            # B starts at zero, so A has no gradient in the first step.
            assert moved == {n for n in found["adapters"] if stage == "further" or ".lora_B." in n}
        assert equal(found["restored"], found["after"])
        trained = sum(found["before"][n].numel() for n in found["adapters"])
        assert found["snapshot_elements"] in (trained, trained // 2)  # whole with ZeRO-1 and 2, half a rank else
        if kind != "fsdp":
            assert found["bytes"] < 500_000  # the embedding alone has 12 MB


@pytest.mark.parametrize("kind", KINDS)
def test_offloaded_steps_are_the_same(seen: dict[str, Any], kind: str) -> None:
    for rank in seen["two"]:
        here, host = rank["offload", kind, False], rank["offload", kind, True]
        assert host["skipped"] == here["skipped"] == [0, 1, 0]
        # DeepSpeed adds up offloaded gradients of ZeRO-1 and 2 in the compute dtype.
        precise = OFFLOADED[kind] == "float32"
        assert host["norms"] == pytest.approx(here["norms"], rel=1e-6 if precise else 1e-2)
        for name, weight in here["weights"].items():
            torch.testing.assert_close(host["weights"][name], weight, rtol=0, atol=1e-6 if precise else 2e-2)


@pytest.mark.parametrize("wrote", [1, 2])
@pytest.mark.parametrize(("kind", "dtype"), STATES)
def test_another_number_of_ranks_goes_on_alike(seen: dict[str, Any], kind: str, dtype: str, wrote: int) -> None:
    written = seen[f"written_{wrote}"][0][kind, dtype]
    for rank in seen[f"read_{3 - wrote}"]:
        found = rank[kind, dtype]
        assert equal(found["weights"], written["weights"]) and equal(found["moments"], written["moments"])
        assert (found["steps"], found["left"]) == (3, False)
        assert not equal(found["next"], found["weights"])
        apart = sum(float((t - written["next"][n]).double().square().sum()) for n, t in found["next"].items())
        step = sum(float((t - written["weights"][n]).double().square().sum()) for n, t in written["next"].items())
        # In bfloat16 another split of the rows rounds activations and gradients differently.
        assert (apart / step) ** 0.5 <= {"float32": TOLERANCE, "bfloat16": 1e-2}[dtype]


def test_the_other_backends_checkpoint_is_refused(seen: dict[str, Any]) -> None:
    remedy = (
        "continue with that, or start a new run from the weights alone, with model.path=… the export/ folder of "
        "that run"
    )
    for kind in KINDS:
        here, there = ("fsdp", "deepspeed") if kind == "fsdp" else ("deepspeed", "fsdp")
        assert seen["two"][0]["refusal", kind] == (
            f"learners={here}: the checkpoint FOLDER was written by learners={there}; {remedy}"
        )
