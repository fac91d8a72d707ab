"""Two DeepSpeed ranks over gloo, at every stage, make one learner: the same gradient, norm and step as plain torch."""

import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import start_processes

from tests import preference_parts
from tests.deepspeed_parts import CASES, SMOOTH, WORLD_SIZE, run_cases, torch_step
from tests.learner_parts import meeting_address

TIMEOUT_S = 200.0
STAGES = (1, 2, 3)


@pytest.fixture(scope="module")
def plain(tiny_model_dir: Path) -> dict[str, Any]:
    """Return what plain torch makes of the batch in float32."""
    return torch_step(tiny_model_dir)


@pytest.fixture(scope="module")
def seen(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """Return what each of two ranks saw, by stage and compute dtype."""
    folder = tmp_path_factory.mktemp("deepspeed")
    arguments = (tuple(meeting_address() for _ in (*CASES, "preference")), str(tiny_model_dir), str(folder))
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["torch", "transformers.models.llama.modeling_llama"]
    )
    ranks: Any = start_processes(run_cases, arguments, WORLD_SIZE, join=False, start_method="forkserver")
    end = time.monotonic() + TIMEOUT_S
    while not ranks.join(timeout=1.0):  # returns when one has ended
        if time.monotonic() > end:
            for process in ranks.processes:
                process.kill()
            pytest.fail(f"{WORLD_SIZE} ranks did not end in {TIMEOUT_S:g} s")
    return {
        case: [torch.load(folder / f"{case[0]}_{case[1]}_rank{r}.pt", weights_only=False) for r in range(WORLD_SIZE)]
        for case in (*CASES, (3, "preference"))
    }


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_are_the_plain_sum(seen: dict[Any, Any], plain: dict[str, Any], stage: int) -> None:
    for rank in seen[stage, "float32"]:
        assert list(rank["gradients"]) == list(plain["gradients"])
        for name, gradient in rank["gradients"].items():
            torch.testing.assert_close(gradient, plain["gradients"][name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_norm_is_that_before_clipping_and_discard_forgets(
    seen: dict[Any, Any], plain: dict[str, Any], stage: int
) -> None:
    assert plain["norm"] > 2  # so that clipping to 1 changes something
    for rank in seen[stage, "float32"]:
        after_unfinished, after_discard, clipped = rank["norms"]
        assert after_unfinished == pytest.approx(plain["norm"], rel=1e-5)
        assert after_discard == pytest.approx(plain["norm"], rel=1e-5)
        assert clipped == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_step_is_that_of_adamw(seen: dict[Any, Any], plain: dict[str, Any], stage: int) -> None:
    for rank in seen[stage, "float32"]:
        assert rank["names"] == [(name, tuple(w.shape)) for name, w in plain["weights"].items()]
        assert list(rank["weights"]) == list(plain["weights"])
        for name, weight in rank["weights"].items():
            torch.testing.assert_close(weight, plain["weights"][name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_bfloat16_computes_beside_float32_masters(seen: dict[Any, Any], plain: dict[str, Any], stage: int) -> None:
    sender, other = seen[stage, "bfloat16"]
    assert sender["norms"] == other["norms"]
    # The tiny model's bfloat16 activations put its gradient within 1% of float32's.
    assert sender["norms"] == pytest.approx([plain["norm"], plain["norm"], 1.0], rel=0.01)
    finer = 0
    for name, weight in sender["weights"].items():
        assert weight.dtype == torch.float32 and sender["rounded"][name].dtype == torch.bfloat16
        assert torch.equal(weight, other["weights"][name])
        assert torch.equal(weight.bfloat16(), sender["rounded"][name])
        finer += int((weight != weight.bfloat16().float()).sum())
        # A step moves a weight by at most lr; 2e-3 is what the gradient's rounding may change of it.
        torch.testing.assert_close(weight, plain["weights"][name], rtol=0, atol=2e-3)
    assert finer > 1000


@pytest.mark.parametrize(("stage", "dtype"), CASES)
def test_trainer_skips_what_is_not_finite_and_resumes_exactly(seen: dict[Any, Any], stage: int, dtype: str) -> None:
    for rank in seen[stage, dtype]:
        first, again = rank["runs"]
        assert (first["result"].optimizer_steps, first["result"].skipped) == (2, 1)
        assert first["result"].num_trained_tokens == 65 + 9
        for key in ("train/loss", "train/grad_norm"):
            assert first["result"].metrics[key] == again["result"].metrics[key]
        for name, weight in first["weights"].items():
            assert bool(weight.isfinite().all()) and torch.equal(weight, again["weights"][name])
            assert torch.equal(rank["weights"][name], rank["restored"][name])
        assert any(not torch.equal(w, rank["weights"][n]) for n, w in first["weights"].items())
        assert torch.equal(*rank["noise"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stages_train_alike(seen: dict[Any, Any], dtype: str) -> None:
    results = [seen[stage, dtype][rank]["runs"][0]["result"] for stage in STAGES for rank in range(WORLD_SIZE)]
    tolerance = {"float32": 1e-5, "bfloat16": 1e-2}[dtype]
    for key in ("train/loss", "train/grad_norm", "train/mismatch"):
        values = [result.metrics[key] for result in results]
        assert values == pytest.approx([values[0]] * len(values), rel=tolerance, abs=tolerance), key


def test_checkpoints_of_another_layout_are_refused(seen: dict[Any, Any]) -> None:
    assert seen[2, "float32"][0]["refusals"] == [
        "learners.zero_stage=2: the checkpoint FOLDER needs learners.zero_stage=0",
        "learners.dtype=float32: the checkpoint FOLDER needs learners.dtype=float64",
    ]


def test_a_reward_model_trains_and_scores_with_sharded_parameters(seen: dict[Any, Any], tiny_model_dir: Path) -> None:
    alone = preference_parts.trainer(tiny_model_dir, **SMOOTH)
    wanted = alone.train([preference_parts.rows(preference_parts.pairs())]).metrics
    ranks = seen[3, "preference"]
    for rank in ranks:
        for key in ("loss", "grad_norm", "pair_accuracy", "score_gap", "pairs"):
            assert rank["metrics"][f"train/{key}"] == pytest.approx(wanted[f"train/{key}"], rel=1e-4, abs=1e-6), key
        for row, scores in zip(rank["plan"], rank["scores"], strict=True):
            assert scores == pytest.approx(alone.predict([row])[0], abs=1e-4)
    assert sum(len(scores) for rank in ranks for scores in rank["scores"]) >= 8
    alone.close()
