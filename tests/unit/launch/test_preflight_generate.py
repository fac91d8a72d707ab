"""What stage=generate refuses before anything starts, and its plan."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from launch.cli import main
from launch.compose import compose
from launch.stages.generate import read_prompts
from lwz_ray.encoding import PromptEncoder
from lwz_ray.errors import UserError

ROWS = [
    {"prompt": "Write about snow.", "id": "a"},
    {"prompt": "写一首诗。", "id": "b"},
    {"prompt": "Go on.", "id": "c"},
]


def plan(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    common = ["run=generate_demo", f"run.dir={tmp_path}", f"model.path={model}", "dry_run=true"]
    status = main([*common, *words])
    printed = capsys.readouterr()
    return status, printed.out or printed.err


def prompts(folder: Path, rows: list[dict[str, str]]) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_plan_counts_texts(tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]):
    data = f"data.path={prompts(tmp_path, ROWS)}"
    status, text = plan(tmp_path, tiny_model_dir, capsys, data, "generate.samples_per_prompt=4")
    assert status == 0
    # The preset reads English requests only.
    assert "2 prompts x 4 samples_per_prompt = 8 texts x at most 1,024 tokens = 8,192 tokens" in text
    assert "rollout engine" in text and "learner" not in text
    _, text = plan(tmp_path, tiny_model_dir, capsys, data, "generate.num_prompts=1")
    assert "1 prompts x 1 samples_per_prompt = 1 texts" in text
    _, text = plan(tmp_path, tiny_model_dir, capsys, "generate.text=写一首诗。")
    assert "1 prompts x 1 samples_per_prompt = 1 texts" in text


def test_mistakes_are_one_line(tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]):
    cases = {
        "error: generate.text is empty": ["generate.text=  "],
        "error: generate.text is no text at character 3": ["generate.text=Go\udcff on"],
        "error: data.path: data source": [f"data.path={tmp_path / 'none.jsonl'}"],
        "no such folder": [f"model.path={tmp_path / 'none'}"],
        "line 4: no column 'prompt'": [f"data.path={prompts(tmp_path, [*ROWS, {'text': 'x'}])}"],
        "sampling.max_tokens=1100 = 2124 exceeds model.max_length_tokens=2048": ["sampling.max_tokens=1100"],
    }
    for message, words in cases.items():
        status, text = plan(tmp_path, tiny_model_dir, capsys, *words)
        assert (status, text.count("\n")) == (2, 1), text
        assert message in text


def test_a_request_that_fills_the_context_is_refused_before_engines_start(tmp_path: Path, tiny_model_dir: Path):
    words = ["run=generate_demo", f"run.dir={tmp_path}", f"model.path={tiny_model_dir}"]
    config = compose([*words, f"generate.text={'tea ' * 2100}"])
    encoder = PromptEncoder(AutoTokenizer.from_pretrained(tiny_model_dir), config.template)
    with pytest.raises(UserError, match=r"generate\.text has 2,\d+ tokens .* leaves no room"):
        read_prompts(config, encoder)
