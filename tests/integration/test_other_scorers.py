"""A run that a judge steers and a function watches: the judge goes away half-way, and the run goes on without it.

It trains adapters, which reach the engine over Ray's object store.
"""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import (
    assert_balanced,
    complete_checkpoints,
    on_device,
    read_json,
    read_lines,
    run,
    run_words,
)
from tests.metric_docs import undocumented
from tests.unit.rewards.judge_server import GOOD, JudgeServer, Reply, serve

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(400)]
FUNCTION = "def vowels(prompt, answer):\n    return sum(c in 'aeiou' for c in answer) / (1 + len(answer))\n"
ANSWERED = 2 + 4 + 8
"""Requests before the judge goes away: two to see that it is there, the first evaluation, one step."""


def by_length(texts: dict[str, str]) -> dict[str, Any]:
    """Give verdicts that differ, also on random text."""
    return {"reason": "counted", "score": 1 + len(texts["ANSWER"]) % 10}


async def test_judge_function_and_drift_in_a_run_of_adapters(models_dir: Path, tmp_path: Path, device: str) -> None:
    (tmp_path / "my_rewards.py").write_text(FUNCTION)
    async with serve(JudgeServer([GOOD] * ANSWERED + [Reply(status=500)], by_length)) as server:
        words = run_words(
            models_dir, tmp_path / "runs", "judged", "steps=3", "eval.every_steps=1", "max_staleness=0",
            f"judge.base_url={server.base_url}", "judge.model=judge-model", "judge.api_key_env=MY_JUDGE_KEY",
            "judge.max_retries=0", "rewards.weights.judge=1", "rewards.function.path=my_rewards:vowels",
            "watch.second_scorer=function", "lora=r16", "weights.transport=object_store", *on_device(device),
        )  # fmt: skip
        environ = {"PYTHONPATH": str(tmp_path), "MY_JUDGE_KEY": "sk-canary-52ad90b1"}
        done = await asyncio.to_thread(run, words, tmp_path / "run.txt", 300.0, environ)
    assert done.returncode == 0, done.output[-4000:]
    assert set(server.authorizations) == {"Bearer sk-canary-52ad90b1"}
    folder = tmp_path / "runs" / "judged"
    summary, lines = read_json(folder / "summary.json"), read_lines(folder / "metrics.jsonl")
    assert_balanced(summary["groups"])
    assert summary["groups"]["dropped"] == {} and summary["active_rewards"] == ["length", "format", "judge"]
    first, last = lines[0], lines[-1]
    assert 0.0 <= first["rewards/judge"] <= 1.0 and first["rewards/abstained"] == 0.0
    assert "watch/judge_driver" in first and first["judge/calls"] >= ANSWERED
    assert last["rewards/abstained"] == 8.0 and "rewards/judge" not in last and "rewards/length" in last
    assert last["judge/failed_server_error"] >= 8.0
    assert all(0.0 <= line["rewards/function"] < 1.0 for line in lines)
    assert "eval/drift" in lines[0] and isinstance(summary["eval"]["drift"], float)
    assert summary["eval"]["failures"]["after"] == {"judge": 4}
    assert not {key for line in lines for key in undocumented(line)}
    assert all(0 < line["train/mismatch"] < 0.05 for line in lines)
    assert last["weights/bytes"] == 155_648  # see test_lora: adapters alone
    assert complete_checkpoints(folder) == [2, 3]
    (adapter,) = folder.rglob("adapter_model.safetensors")
    assert (adapter.parents[1] / "model.safetensors").is_file()
    for file in folder.glob("*.json*"):
        assert "sk-canary" not in file.read_text(encoding="utf-8")
