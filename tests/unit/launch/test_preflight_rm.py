"""What stage=train_rm is refused for, and its plan."""

import json
import shutil
from pathlib import Path

import pytest

from launch.compose import compose
from launch.plan import plan_text
from launch.preflight import preflight
from lwz_ray.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    rows = [
        {"prompt": f"Topic {s}", "chosen": f"Good {s}.", "rejected": f"Bad {k}.", "kind": k, "source": f"t{s}"}
        for s in range(10)
        for k in ("cut", "mix")
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


def words(folder: Path, *more: str) -> list[str]:
    return [
        "run=rm_demo", f"run.dir={folder}/runs", f"model.path={folder}/model",
        f"preference.path={folder}/pairs.jsonl", "preference.eval_path=null", *more,
    ]  # fmt: skip


def error_of(folder: Path, *more: str) -> str:
    with pytest.raises(UserError) as caught:
        preflight(compose(words(folder, *more)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_complete_setting_passes(folder: Path):
    preflight(compose(words(folder)))


def test_missing_pairs_name_the_stage_that_makes_them(folder: Path):
    assert error_of(folder, f"preference.path={folder}/nope.jsonl") == (
        f"preference.path: data source '{folder}/nope.jsonl': no such file; stage=curate recipe=degradations makes "
        "pairs, or name a .jsonl or .parquet file, or hub:owner/name"
    )
    assert error_of(folder, f"preference.eval_path={folder}/nope.jsonl").startswith("preference.eval_path: data source")
    # A plan may be made before the pairs are.
    preflight(compose(words(folder, f"preference.path={folder}/nope.jsonl", "dry_run=true")))


def test_a_bad_row_is_found_before_anything_starts(folder: Path):
    with (folder / "pairs.jsonl").open("a") as file:
        file.write('{"prompt": "x", "chosen": "same", "rejected": "same"}\n')
    assert error_of(folder).startswith(
        f"{folder}/pairs.jsonl, line 21: chosen and rejected are the same text: nothing is preferred; correct it"
    )


def test_held_out_sources_must_be_new(folder: Path):
    assert "10 of its sources are also in preference.path" in error_of(
        folder, f"preference.eval_path={folder}/pairs.jsonl"
    )


def test_numbers_that_cannot_work(folder: Path):
    assert error_of(folder, "learners.microbatch_tokens=1023").startswith(
        "learners.microbatch_tokens=1023 is below 2 x model.max_length_tokens=512 = 1024: both texts"
    )
    assert error_of(folder, "steps=3").startswith(
        "steps=3 with optimizer.warmup_steps=3 and preference.lr_schedule=linear: the rate would never fall"
    )
    preflight(compose(words(folder, "steps=3", "preference.lr_schedule=constant")))


def test_models_that_cannot_be_trained(folder: Path, tiny_classifier_dir: Path):
    config = folder / "model" / "config.json"
    found = json.loads(config.read_text())
    config.write_text(json.dumps({**found, "architectures": ["LlamaModel"]}))
    assert "LlamaModel is no language model (…ForCausalLM) and no reward model" in error_of(folder)
    classifier = ["LlamaForSequenceClassification"]
    config.write_text(json.dumps({**found, "architectures": classifier, "id2label": {"0": "a", "1": "b"}}))
    assert "LlamaForSequenceClassification with 2 outputs (id2label)" in error_of(folder)
    (folder / "model" / "model.safetensors").unlink()
    config.write_text(json.dumps(found))
    assert "holds no weights" in error_of(folder)
    preflight(compose(words(folder, f"model.path={tiny_classifier_dir}")))


def test_the_plan_counts_pairs_and_a_scalar_head(folder: Path):
    text = plan_text(compose(words(folder, "preference.pairs_per_step=4", "steps=20")))
    assert "  learners    1 x {CPU: 1} = 1 CPUs, 0 GPUs\n  total     1 CPUs, 0 GPUs\n" in text
    assert "  4 preference.pairs_per_step x 20 steps = 80 pairs\n" in text
    assert "  4 pairs x 2 texts x at most 512 tokens = 4,096 a step; " in text
    assert "  at that length at least 2 microbatches of 2,048 tokens, 2.0 a rank\n" in text
    expected = "  16 training pairs of 8 sources, 4 held-out pairs of 2 sources (those too long included): 5.0 epochs\n"
    assert expected in text
    # The tiny model's 3,220,000-odd parameters, its 64 numbers of head among them, and no logits of the vocabulary.
    assert "logits" not in text
    assert "rollout engine" not in text
