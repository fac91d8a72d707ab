"""`stage=curate` on real Ray and vLLM with a user's texts: pairs, accounts, a second attempt that redoes nothing."""

import json
from pathlib import Path

import pytest

from tests.integration.harness import on_device, read_json, read_lines, run, succeed
from tests.metric_docs import undocumented

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow]
SUBJECTS = ("clams", "kites", "bread", "clocks", "snow", "maps")


def write_texts(path: Path) -> Path:
    rows = [
        {
            "prompt": f"Write about {s}.",
            "text": f"Everyone in the village knew about the {s}. Two old sisters had brought them across the bay. "
            f"They kept a small notebook full of {s}. Nobody else was allowed to read it.",
        }
        for s in SUBJECTS
    ]
    rows.append({"prompt": "Write about rain.", "text": "Rain fell."})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_texts_become_pairs_once(tmp_path: Path, tiny_model_dir: Path, device: str):
    words = [
        "run=curate_demo", f"run.dir={tmp_path}", "run.name=first", f"model.path={tiny_model_dir}",
        f"curate.texts_path={write_texts(tmp_path / 'texts.jsonl')}", "actors.kv_cache_mib=64",
        "actors.num_cpus=0.8", *on_device(device),
    ]  # fmt: skip
    succeed(words, tmp_path / "first.txt", timeout_s=120)
    folder = tmp_path / "first"
    summary = read_json(folder / "summary.json")
    found = summary["curate"]
    assert (summary["stage"], summary["status"], summary["error"]) == ("curate", "completed", None)
    assert summary["failures"] == {"infrastructure": {}, "data": {}, "bug": {}}
    assert found["texts"] == {"seen": 7, "good": 6}
    assert found["left_out"]["few_sentences"] == 1
    train, held_out = read_lines(folder / "pairs.jsonl"), read_lines(folder / "pairs_heldout.jsonl")
    assert len(train) + len(held_out) == sum(k["train"] + k["heldout"] for k in found["kinds"].values())
    assert {r["source"] for r in train} & {r["source"] for r in held_out} == set()
    assert {r["kind"] for r in train} >= {"shuffle", "repeat", "cut", "drift", "mix", "hot"}
    for row in train + held_out:
        assert row["chosen"].startswith("Everyone in the village")
        assert row["rejected"] != row["chosen"]
    hot = [r for r in train if r["kind"] == "hot"]
    assert {r["rejected"][:8] for r in hot} == {"Everyone"}
    lines = read_lines(folder / "metrics.jsonl")
    assert lines[-1]["curate/pairs"] == len(train) + len(held_out)
    assert [undocumented(line) for line in lines] == [set()] * len(lines)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Pairs by kind" in page

    refused = run(words, tmp_path / "refused.txt", timeout_s=60)
    assert refused.returncode == 2
    kinds = "curate.kinds=[shuffle,repeat,cut,drift,mix]"
    other = [w for w in words if not w.startswith("run.name")]
    succeed([*other, kinds, "run.name=ruled"], tmp_path / "ruled.txt", timeout_s=60)
    before = (tmp_path / "ruled" / "pairs.jsonl").read_bytes()
    done = succeed([*other, kinds, "run.name=ruled", "run.resume=auto"], tmp_path / "again.txt", timeout_s=60)
    assert (tmp_path / "ruled" / "pairs.jsonl").read_bytes() == before
    assert done.lines("texts spoiled") == []
    assert read_json(tmp_path / "ruled" / "summary.json")["tokens"]["generated"] == 0
