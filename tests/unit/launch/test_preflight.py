"""What is refused before a model is loaded, by changing one file at a time in a folder that passes."""

import json
import os
import shutil
from pathlib import Path

import pytest

from launch.compose import compose
from launch.preflight import preflight
from lwz_ray.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, tiny_model_dir: Path, tiny_classifier_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with copies of both tiny models and a prompt file."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    shutil.copytree(tiny_model_dir, tmp_path / "policy")
    shutil.copytree(tiny_classifier_dir, tmp_path / "scorer")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Write about 800 words."}\n')
    return tmp_path


def check(folder: Path, *argv: str) -> None:
    given = [
        f"run.dir={folder}/runs",
        f"model.path={folder}/policy",
        f"rewards.writing.path={folder}/scorer",
        f"data.path={folder}/prompts.jsonl",
        f"eval.path={folder}/prompts.jsonl",
        "eval.num_prompts=1",
    ]
    preflight(compose([*given, *argv]))


def error_of(folder: Path, *argv: str) -> str:
    with pytest.raises(UserError) as caught:
        check(folder, *argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit_json(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_complete_setting_passes(folder: Path):
    check(folder)


def test_missing_folder(folder: Path):
    assert error_of(folder, f"model.path={folder}/nope") == (
        f"model.path='{folder}/nope': no such folder; name a Hugging Face folder (`make setup` writes those under "
        "models/) or hub:owner/name"
    )


def test_folder_without_config(folder: Path):
    (folder / "policy" / "config.json").unlink()
    assert error_of(folder) == (
        f"model.path='{folder}/policy': has no config.json; name a folder that save_pretrained wrote"
    )


def test_broken_config(folder: Path):
    (folder / "policy" / "config.json").write_text("{")
    assert error_of(folder).startswith(f"model.path: {folder}/policy/config.json is no JSON file (")


def test_a_config_that_is_no_object(folder: Path):
    (folder / "policy" / "config.json").write_text("[1]")
    assert error_of(folder) == f"model.path: {folder}/policy/config.json holds a list and no JSON object; restore it"


def test_a_policy_writes_text(folder: Path):
    edit_json(folder / "policy" / "config.json", architectures=["LlamaForSequenceClassification"])
    assert error_of(folder) == (
        f"model.path='{folder}/policy': LlamaForSequenceClassification is no language model (…ForCausalLM); name a "
        "folder of one"
    )
    edit_json(folder / "policy" / "config.json", architectures=["GPT2LMHeadModel"])
    check(folder)


def test_no_tokenizer(folder: Path):
    (folder / "policy" / "tokenizer.json").unlink()
    assert "has no tokenizer" in error_of(folder)


def test_no_chat_template(folder: Path):
    (folder / "policy" / "chat_template.jinja").unlink()
    assert error_of(folder) == (
        f"model.path='{folder}/policy': its tokenizer has no chat template, which template.chat=true needs; use "
        "template.chat=false (a base model) or add chat_template.jinja to the folder"
    )
    check(folder, "template.chat=false")
    edit_json(folder / "policy" / "tokenizer_config.json", chat_template="{{ messages }}")
    check(folder)


def test_pickled_weights_are_refused(folder: Path):
    os.rename(folder / "policy" / "model.safetensors", folder / "policy" / "pytorch_model.bin")
    assert error_of(folder) == (
        f"model.path='{folder}/policy': holds only pytorch_model.bin, a pickle that can run code when read; save the "
        "weights as model.safetensors"
    )


def test_missing_shard(folder: Path):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "policy" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "1 of 2 weight files are missing: model-00002-of-00002.safetensors" in error_of(folder)


def test_positions(folder: Path):
    edit_json(folder / "policy" / "config.json", max_position_embeddings=256)
    assert error_of(folder) == (
        f"model.max_length_tokens=512 exceeds the 256 positions of model.path='{folder}/policy': lower it"
    )


def test_a_scorer_has_one_output(folder: Path):
    edit_json(folder / "scorer" / "config.json", id2label={"0": "bad", "1": "good"})
    assert error_of(folder) == (
        f"rewards.writing.path='{folder}/scorer': LlamaForSequenceClassification with 2 outputs (id2label); a reward "
        "model is a …ForSequenceClassification with num_labels=1"
    )
    assert "LlamaForCausalLM with 2 outputs" in error_of(folder, f"rewards.writing.path={folder}/policy")


def test_missing_data(folder: Path):
    assert error_of(folder, f"eval.path={folder}/no.jsonl") == (
        f"eval.path: data source '{folder}/no.jsonl': no such file; name a .jsonl or .parquet file, or hub:owner/name"
    )


def test_rows_are_read_before_anything_starts(folder: Path):
    (folder / "bad.jsonl").write_text('{"prompt": "Write about 800 words."}\n{"prompt": \n')
    assert error_of(folder, f"data.path={folder}/bad.jsonl").startswith(
        f"{folder}/bad.jsonl, line 2: not JSON at column"
    )
    check(folder, f"data.path={folder}/bad.jsonl", "data.on_bad_row=skip")
    assert error_of(folder, "eval.num_prompts=2") == (
        f"eval.num_prompts=2, but {folder}/prompts.jsonl leaves 1 of 1 rows; lower it or name a larger source"
    )


def test_used_run_folder(folder: Path):
    used = folder / "runs" / "smoke_cpu"
    used.mkdir(parents=True)
    check(folder)
    (used / "metrics.jsonl").write_text("{}\n")
    assert error_of(folder) == (
        f"{used} already holds a run: choose another run.name, or continue it with run.resume=auto"
    )
    check(folder, "run.resume=auto")
    check(folder, "run.name=other")


def test_the_folder_of_another_stage_is_left_alone(folder: Path):
    used = folder / "runs" / "smoke_cpu"
    used.mkdir(parents=True)
    (used / "metrics.jsonl").write_text("{}\n")
    (used / "config.yaml").write_text("stage: evaluate\nrecipe: null\n")
    assert error_of(folder, "run.resume=auto") == (
        f"{used} holds a run of stage=evaluate, not stage=rl: choose another run.name"
    )
    (used / "config.yaml").write_text("stage: rl\nrecipe: degradations\n")
    check(folder, "run.resume=auto")
    (used / "config.yaml").write_text("stage: curate\nrecipe: degradations\n")
    found = error_of(folder, "run.resume=auto", "stage=curate", "recipe=chat_logs")
    assert found == f"{used} holds a run of recipe=degradations, not recipe=chat_logs: choose another run.name"
    for broken in ("a: [", "hello"):
        (used / "config.yaml").write_text(broken)
        assert error_of(folder, "run.resume=auto").startswith(f"{used}/config.yaml: ")


def test_a_place_that_cannot_be_written(folder: Path):
    (folder / "file").write_text("")
    assert error_of(folder, f"run.dir={folder}/file") == (
        f"run.dir={folder}/file: {folder}/file is a file, so there can be no {folder}/file/smoke_cpu; name a folder"
    )
    check(folder, f"run.dir={folder}/file", "dry_run=true")


def test_hub_names(folder: Path):
    check(folder, "model.path=hub:Qwen/Qwen2.5-32B", "dry_run=true")
    assert error_of(folder, "model.path=hub:nobody/nothing").startswith(
        "model.path=hub:nobody/nothing: neither in the local cache nor to be had from the hub (HF_HUB_OFFLINE is set)"
    )


def test_a_dashboard_is_no_cluster(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    assert error_of(folder).startswith("cluster.address='http://127.0.0.1:8265' is a dashboard's address")


def test_staging_folder(folder: Path):
    assert error_of(folder, f"weights.staging_dir={folder}/none") == (
        f"weights.staging_dir='{folder}/none': not a folder that can be written; name a local one"
    )
