"""The user's DeepSpeed file is read before anything starts, and reaches every rank."""

from pathlib import Path

import pytest

from launch.compose import compose
from launch.deepspeed_file import read_deepspeed_file
from launch.learner_room import learner_settings
from launch.preflight import preflight
from lwz_ray.config import Config
from lwz_ray.errors import UserError


def config_of(file: Path) -> Config:
    return compose(["learners=deepspeed", f"learners.deepspeed_config={file}", f"run.dir={file.parent}/runs"])


def test_the_file_reaches_the_ranks(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text('{"zero_optimization": {"overlap_comm": false}}')
    settings = learner_settings(config_of(file), ("/tmp",), 0)
    assert settings.deepspeed_config == {"zero_optimization": {"overlap_comm": False}}
    assert learner_settings(compose(["learners=deepspeed"]), ("/tmp",), 0).deepspeed_config == {}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, "no such file; name a JSON file with DeepSpeed's keys, or null"),
        ("{", "is no JSON file (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
        ("[1]", "holds list, not a JSON object of DeepSpeed's keys"),
        ('{"optimizer": {}}', "optimizer is set by this project; set optimizer.lr, optimizer.betas, optimizer.eps and "
         "optimizer.weight_decay instead"),
    ],
)  # fmt: skip
def test_preflight_refuses_it_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, line: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    file = tmp_path / "ds.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError) as raised:
        preflight(config_of(file))
    assert str(raised.value) == f"learners.deepspeed_config='{file}': {line}"


def test_fsdp_takes_no_deepspeed_file() -> None:
    with pytest.raises(UserError, match=r"deepspeed_config=\S*ds\.json but learners\.backend=fsdp"):
        compose(["learners.deepspeed_config=ds.json"])


def test_no_file_is_an_empty_one() -> None:
    assert read_deepspeed_file(compose([])) == {}
