"""What stage=pretrain and stage=sft are refused for, and their plans."""

import json
from pathlib import Path

import pytest

from launch.compose import compose
from launch.learner_room import learner_settings
from launch.memory_learner import learner_estimate
from launch.plan import plan_text
from launch.preflight import preflight
from launch.shapes import shape_of
from lwz_ray.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name, count in (("books", 30), ("plans", 10)):
        rows = [{"text": f"{name} number {i}: a text of some words."} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    pairs = [{"prompt": f"Topic {i}", "answer": f"A text about {i}."} for i in range(20)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in pairs))
    return tmp_path


def corpus(folder: Path, model: Path, *more: str) -> list[str]:
    sources = f"{{books: {{path: {folder}/books.jsonl, weight: 99}}, plans: {{path: {folder}/plans.jsonl}}}}"
    return [
        "run=pretrain_demo", f"run.dir={folder}/runs", f"model.path={model}", f"corpus.sources={sources}",
        "corpus.held_out_documents=2", *more,
    ]  # fmt: skip


def pairs(folder: Path, model: Path, *more: str) -> list[str]:
    return ["run=sft_demo", f"run.dir={folder}/runs", f"model.path={model}", f"sft.path={folder}/pairs.jsonl", *more]


def error_of(words: list[str]) -> str:
    with pytest.raises(UserError) as caught:
        preflight(compose(words))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_complete_settings_pass(folder: Path, tiny_model_dir: Path):
    preflight(compose(corpus(folder, tiny_model_dir)))
    preflight(compose(pairs(folder, tiny_model_dir)))


def test_a_map_of_sources_replaces_the_presets(folder: Path, tiny_model_dir: Path):
    assert list(compose(corpus(folder, tiny_model_dir)).corpus.sources) == ["books", "plans"]
    added = compose(["run=pretrain_demo", f"corpus.sources.mine.path={folder}/books.jsonl"])
    assert list(added.corpus.sources) == ["pieces", "mine"]


def test_data_is_read_before_anything_starts(folder: Path, tiny_model_dir: Path):
    missing = f"{folder}/no.jsonl"
    words = corpus(folder, tiny_model_dir, f"corpus.sources.books.path={missing}")
    assert error_of(words).startswith(f"corpus.sources.books: data source '{missing}': no such file")
    # A plan may be made before the documents are.
    preflight(compose([*words, "dry_run=true"]))
    words = pairs(folder, tiny_model_dir, f"sft.path={missing}")
    assert error_of(words).startswith(f"sft.path: data source '{missing}': no such file")
    preflight(compose([*words, "dry_run=true"]))
    assert error_of(pairs(folder, tiny_model_dir, "sft.path=null")).startswith("stage=sft needs chat pairs: sft.path=")
    with (folder / "books.jsonl").open("a") as file:
        file.write("{}\n")
    assert f"{folder}/books.jsonl, line 31: no column 'text'" in error_of(corpus(folder, tiny_model_dir))


def test_a_context_of_one_token_trains_nothing(folder: Path, tiny_model_dir: Path):
    words = corpus(folder, tiny_model_dir, "model.max_length_tokens=1")
    assert error_of(words) == "model.max_length_tokens=1: a token to read and one to train do not fit; raise it"


def test_gpus_are_asked_of_the_rooms_that_a_stage_has(folder: Path, tiny_model_dir: Path):
    compose(pairs(folder, tiny_model_dir, "learners.device=cuda", "learners.num_gpus=1"))


def test_a_falling_rate_has_to_fall(folder: Path, tiny_model_dir: Path):
    # 2 steps of 4 x 1024 tokens reach the budget; the warm-up takes both.
    words = corpus(folder, tiny_model_dir, "corpus.max_tokens=8000", "optimizer.warmup_steps=2")
    assert error_of(words).startswith(
        "2 steps with optimizer.warmup_steps=2 and corpus.lr_schedule=cosine: the rate would never fall; raise steps"
    )
    preflight(compose([*words, "corpus.lr_schedule=constant"]))
    words = pairs(folder, tiny_model_dir, "steps=2", "sft.lr_schedule=linear")
    assert error_of(words).startswith("2 steps with optimizer.warmup_steps=2 and sft.lr_schedule=linear")


def test_models_that_cannot_be_trained(folder: Path, tiny_model_dir: Path, tiny_classifier_dir: Path, tmp_path: Path):
    assert "LlamaForSequenceClassification is no language model" in error_of(corpus(folder, tiny_classifier_dir))
    assert "exceeds the" in error_of(
        corpus(folder, tiny_model_dir, "model.max_length_tokens=9000", "learners.microbatch_tokens=9000")
    )
    base = tmp_path / "base"
    base.mkdir()
    for file in tiny_model_dir.iterdir():
        if file.name == "tokenizer_config.json":
            settings = {k: v for k, v in json.loads(file.read_text()).items() if k != "chat_template"}
            (base / file.name).write_text(json.dumps(settings))
        elif file.name != "chat_template.jinja":
            (base / file.name).symlink_to(file)
    # Documents need no chat template; pairs do, unless they are plain text.
    preflight(compose(corpus(folder, base)))
    assert "its tokenizer has no chat template" in error_of(pairs(folder, base))
    preflight(compose(pairs(folder, base, "template.chat=false")))


def test_the_plans_say_what_a_step_takes(folder: Path, tiny_model_dir: Path):
    text = plan_text(compose(corpus(folder, tiny_model_dir, "corpus.max_tokens=20000", "run.name=planned")))
    assert "4 corpus.sequences_per_step x 1,024 tokens = 4,096 a step" in text
    assert "5 steps x 4,096 = 20,480 tokens (steps=16, corpus.max_tokens=20,000: whichever comes first)" in text
    assert "at that length at least 2 microbatches of 2,048 tokens, 2.0 a rank" in text
    assert "books: 99.000%, 20,275 tokens, from 28 documents of" in text
    assert "plans: 1.000%, 205 tokens, from 8 documents of" in text
    assert "4 documents are held out for perplexity" in text
    text = plan_text(compose(pairs(folder, tiny_model_dir)))
    assert "8 sft.samples_per_step x 16 steps = 128 conversations\n" in text
    assert "20 conversations (those too long included), about 2 of them held out: 7.1 epochs in 16 steps" in text


def test_the_learners_get_the_stages_schedule_and_sources(folder: Path, tiny_model_dir: Path):
    settings = learner_settings(compose(corpus(folder, tiny_model_dir, "steps=9")), ("/tmp",), 0)
    found = (settings.objective, settings.lr_schedule, settings.total_steps, settings.sources, settings.algorithm)
    assert found == ("language_model", "cosine", 9, ("books", "plans"), None)
    settings = learner_settings(compose(pairs(folder, tiny_model_dir, "sft.lr_schedule=linear")), ("/tmp",), 0)
    assert (settings.objective, settings.lr_schedule, settings.sources) == ("language_model", "linear", ("pairs",))


def test_memory_counts_no_reference_and_no_publication(folder: Path, tiny_model_dir: Path):
    words = corpus(folder, tiny_model_dir, "algorithm.kl_coefficient=0.1", "algorithm.entropy_coefficient=0.1")
    shape = shape_of("model.path", str(tiny_model_dir))
    with_rl = learner_estimate(compose([*words, "stage=rl", "sampling.max_tokens=64"]), shape)
    alone = learner_estimate(compose(words), shape)
    assert "reference" in {t.name for t in with_rl.terms} - {t.name for t in alone.terms}
    assert "publication" in with_rl.notes[0] and "publication" not in alone.notes[0]
    # 4 sequences of 1,024 tokens are two microbatches: earlier ones leave gradients.
    assert "gradients" in {t.name for t in alone.terms}
