"""Which model is asked, and what is refused before it is opened."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from launch.chat_open import chat_source, check_chat, engine_config, open_chat, probe
from launch.compose import compose
from launch.preflight import preflight
from lwz_ray.chat import ChatRequest
from lwz_ray.config import Config
from lwz_ray.errors import UserError
from tests.unit.rewards.judge_server import JudgeServer, Reply, serve

REQUEST = ChatRequest(({"role": "user", "content": "Greet me."},), 32, 0.8, 0.95, 7)


@pytest.fixture(scope="module")
def plain() -> Config:
    return compose(["run=demo_cpu"])


def asking(plain: Config, judge_path: Path | None = None, base_url: str | None = None, length: int = 512) -> Config:
    judge = {"base_url": base_url, "model": base_url and "judge-model", "max_retries": 0}
    evaluate = {"judge_path": None if judge_path is None else str(judge_path), "judge_max_length_tokens": length}
    changes = {"judge": judge, "evaluate": evaluate}
    return plain.model_copy(update={k: getattr(plain, k).model_copy(update=v) for k, v in changes.items()})


def test_the_config_says_who_is_asked(plain: Config, tiny_model_dir: Path) -> None:
    url = "http://127.0.0.1:8000/v1"
    configs = [asking(plain), asking(plain, tiny_model_dir), asking(plain, tiny_model_dir, url)]
    assert [chat_source(config, "judge") for config in configs] == [None, "engine", "endpoint"]
    assert [chat_source(config, "curate") for config in configs] == ["engine"] * 3
    chosen = engine_config(configs[1], "judge")
    assert (chosen.model.path, chosen.model.max_length_tokens) == (str(tiny_model_dir), 512)
    assert chosen.template.stop == ""
    same = engine_config(configs[1], "curate")
    assert same.model == configs[1].model
    assert same.template.stop == ""


def test_a_model_that_cannot_be_asked_is_refused_before_anything_is_loaded(
    plain: Config, tiny_model_dir: Path, tmp_path: Path
) -> None:
    check_chat(asking(plain), "judge")
    check_chat(asking(plain, tiny_model_dir), "judge")
    base = tmp_path / "base"
    shutil.copytree(tiny_model_dir, base)
    (base / "chat_template.jinja").unlink()
    settings: dict[str, Any] = json.loads((base / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    for config, says in [
        (asking(plain, base), "no chat template, so it cannot be asked; name an instruct model"),
        (asking(plain, tmp_path / "nowhere"), r"evaluate\.judge_path='.*nowhere': no such folder"),
        (asking(plain, tiny_model_dir, length=16384), "judge_max_length_tokens=16384 exceeds the 8192 positions"),
        (asking(plain, None, "127.0.0.1:8000"), "needs the form http://host:port/v1"),
    ]:
        with pytest.raises(UserError, match=says):
            check_chat(config, "judge")


async def test_an_endpoint_is_opened_with_its_replies_kept_in_the_run_folder(plain: Config, tmp_path: Path) -> None:
    async with serve(JudgeServer([Reply(content="ready"), Reply(content="Hello!"), Reply(status=400)])) as server:
        config = asking(plain, base_url=server.base_url)
        for cached in (0, 2):
            async with open_chat(config, "judge", tmp_path) as chat:
                await probe(chat, "json_schema")
                assert (await chat.reply(REQUEST)).text == "Hello!"
                assert chat.usage["cached"] == cached
        assert len(server.bodies) == 2
        assert len((tmp_path / "asked" / "judge.jsonl").read_text().splitlines()) == 2
        # What is known of one way of holding replies to a schema says nothing of another.
        for folder, structured_output in ((tmp_path / "other", "json_schema"), (tmp_path, "json_object")):
            async with open_chat(config, "judge", folder) as chat:
                with pytest.raises(UserError, match=r"gave no reply to a short request: the judge at .* 400"):
                    await probe(chat, structured_output)
    with pytest.raises(UserError, match=r"no judge: name an endpoint with judge\.base_url or a local model"):
        async with open_chat(asking(plain), "judge", tmp_path):
            pytest.fail("there is nobody to ask")


async def test_the_probe_finds_out_whether_the_endpoint_holds_replies_to_a_schema(
    plain: Config, tmp_path: Path
) -> None:
    refusing = Reply(status=400, error="response_format json_schema is not supported")
    async with (
        serve(JudgeServer([refusing])) as server,
        open_chat(asking(plain, base_url=server.base_url), "judge", tmp_path) as chat,
    ):
        with pytest.raises(UserError, match=r"json_schema is not supported.*judge\.structured_output"):
            await probe(chat, "json_schema")
    assert server.bodies[0]["response_format"]["type"] == "json_schema"
    assert "JSON" in server.bodies[0]["messages"][0]["content"]


def test_chat_logs_without_a_row_are_refused(tmp_path: Path, tiny_model_dir: Path) -> None:
    (tmp_path / "none.jsonl").write_text("\n")
    words = ["run=curate_logs", f"run.dir={tmp_path}", f"model.path={tiny_model_dir}"]
    with pytest.raises(UserError, match=r"none\.jsonl holds no row; name another file, or leave it out"):
        preflight(compose([*words, f"curate.chat_logs.paths=[{tmp_path}/none.jsonl]"]))


def test_who_is_asked_writes_text(tmp_path: Path, tiny_classifier_dir: Path) -> None:
    with pytest.raises(UserError, match="LlamaForSequenceClassification is no language model"):
        preflight(compose(["run=curate_logs", f"run.dir={tmp_path}", f"model.path={tiny_classifier_dir}"]))
