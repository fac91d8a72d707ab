"""`stage=generate` whole where every text is there already: nothing is loaded but the tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from launch.cli import main
from launch.compose import compose
from launch.files import iter_json_lines
from launch.hub import with_local_models
from launch.run_folder import prepare_folder
from launch.stages.generate import read_prompts
from launch.text_store import TextStore
from lwz_ray.encoding import PromptEncoder
from lwz_ray.texts import WrittenText

REQUEST = "Write about rain in 50 words."
PLAN_AND_WORK = "Clouds first.</think><answer>\nRain & clouds.</answer>"


@pytest.fixture
def words(tmp_path: Path, tiny_model_dir: Path) -> list[str]:
    return ["run=generate_demo", f"run.dir={tmp_path}", "run.name=texts", f"model.path={tiny_model_dir}",
            "model.max_length_tokens=512", "sampling.max_tokens=300", "data.max_prompt_tokens=200",
            "template=think"]  # fmt: skip


def fill(words: list[str], completions: list[str]) -> None:
    """Keep texts as a run with these settings leaves them, as many to each prompt as there are completions."""
    config = with_local_models(compose(words))
    store = TextStore(prepare_folder(config.run), config)
    for prompt in read_prompts(config, None).prompts:
        for index, completion in enumerate(completions):
            row = {"prompt_id": prompt.prompt_id, "prompt": prompt.text, "sample_index": index, "num_tokens": 9,
                   "completion": completion, "answer": completion, "finish_reason": "stop"}  # fmt: skip
            store.add(WrittenText.from_dict(row, "a row"))


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [line for line in iter_json_lines(folder / "texts" / name) if not line.get("superseded")]


def test_a_request_that_was_answered_is_shown_again_without_an_engine(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
):
    words = [*words, f"generate.text={REQUEST}"]
    fill(words, [PLAN_AND_WORK])
    for _ in range(2):
        assert main(words) == 0
        printed = capsys.readouterr()
        assert printed.out == "Rain & clouds.\n"
        assert "Clouds first.\n" in printed.err
        assert "1 texts, 1 are there already" in printed.err and "starting engines" not in printed.err
    (sample,) = lines(tmp_path, "samples.jsonl")
    assert (sample["length_range"], sample["split"], sample["step"]) == ([45, 55], "texts", 1)
    summary = json.loads((tmp_path / "texts/summary.json").read_text())
    found = summary["generate"]
    assert (summary["status"], found["texts"], found["asked_for_length"]) == ("completed", 1, 1)
    assert "Rain &amp; clouds." in (tmp_path / "texts/report.html").read_text()


def test_the_lines_of_other_settings_and_of_fewer_texts_no_longer_count(tmp_path: Path, words: list[str]):
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"Write about {what}."}) + "\n" for what in ("tea", "rain")))
    words = [*words, f"data.path={data}"]
    cooler = [*words, "sampling.temperature=0.5"]
    fill([*words, "generate.samples_per_prompt=2"], ["one", "two"])
    fill(cooler, ["cool"])
    assert main([*words, "generate.samples_per_prompt=2"]) == 0
    assert [line["completion"] for line in lines(tmp_path, "samples.jsonl")] == ["one", "two"] * 2
    for settings, expected in ((cooler, ["cool"] * 2), (words, ["one"] * 2)):
        assert main(settings) == 0
        assert [line["completion"] for line in lines(tmp_path, "samples.jsonl")] == expected
        assert [line["completion"] for line in lines(tmp_path, "texts.jsonl")] == expected


def test_a_prompt_is_read_with_its_length_wherever_it_stands(tmp_path: Path, words: list[str], tiny_model_dir: Path):
    """One request and the same in a file are one text, so they ask for one length."""
    data = tmp_path / "prompts.jsonl"
    data.write_text(json.dumps({"prompt": REQUEST}) + "\n")
    config = compose([*words, f"generate.text={REQUEST}"])
    encoder = PromptEncoder(AutoTokenizer.from_pretrained(tiny_model_dir), config.template)
    (alone,) = read_prompts(config, encoder).prompts
    (of_file,) = read_prompts(compose([*words, f"data.path={data}"]), encoder).prompts
    assert alone.length_range == of_file.length_range == (45, 55)
