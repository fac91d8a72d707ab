"""The parts of `stage=evaluate`: what is refused, what judging will cost, whose scores count, what is drawn."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from launch.compose import compose
from launch.evaluate_cost import estimate_judging
from launch.evaluate_file import read_evaluation, write_evaluation
from launch.evaluate_judge import judge_facts, judge_settings
from launch.evaluate_scores import Found
from launch.evaluate_texts import read_texts
from launch.plan import plan_text
from launch.preflight import preflight
from launch.report_evaluate import evaluate_headline
from launch.report_intervals import Bar, interval_chart, words_chart
from lwz_ray.benchmarks.comparing import compare
from lwz_ray.benchmarks.loading import load_benchmark
from lwz_ray.errors import UserError
from tests.benchmark_parts import arena, criterion_row, write_lines, written
from tests.unit.launch.evaluate_parts import ANSWERS, REQUESTS, requests_file, texts_file, words_of

PROMPTS = [row["prompt"] for row in REQUESTS]
JUDGE = ["judge.base_url=http://127.0.0.1:9/v1", "judge.model=judge"]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    requests_file(tmp_path)
    texts_file(tmp_path, PROMPTS, ANSWERS)
    return tmp_path


def arena_words(files: Path) -> list[str]:
    requests_file(files, [{"idx": 1, "question": "Q?", "type": "essay"}])
    texts_file(files, ["Q?"], ["A."])
    answers = write_lines(files / "north.jsonl", [{"idx": 1, "baseline_response": "B."}])
    return ["benchmark=arena_write", f"benchmark.baselines={{north: {answers}}}"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["benchmark.path=null"], "benchmark.path=null: name the requests of longbench_write"),
        (["evaluate.texts_path=absent.jsonl"], "absent.jsonl': no such file; name a texts.jsonl, or the run folder"),
        (["evaluate.samples_per_request=2"], "1 texts to request '0', 2 needed (3 requests are like that)"),
        ([*JUDGE, "evaluate.judge_path=models/tiny-random"], "two judges; set one of them to null"),
        ([*JUDGE, "evaluate.max_cost=1"], "evaluate.max_cost=1 without prices: give judge.price_input"),
        (
            [*JUDGE, "evaluate.max_cost=0.001", "judge.price_input=2", "judge.price_output=8"],
            "evaluate.max_cost=0.001, but judging would cost about 0.02 (3 calls",
        ),
        (["evaluate.bootstrap_resamples=1"], "evaluate.bootstrap_resamples=1"),
        (["evaluate.judge_path=absent"], "absent': no such folder"),
        (["judge.model=m"], "judge.model='m' but judge.base_url is null: name the endpoint's address"),
        (["benchmark.path=absent.jsonl"], "benchmark.path: data source '"),
        (["benchmark.path=."], "a folder, where a file is needed; name the requests of longbench_write"),
    ],
)
def test_what_cannot_work_is_refused_with_one_line(files: Path, words: list[str], says: str):
    with pytest.raises(UserError, match=re.escape(says)):
        preflight(compose(words_of(files, "refused", *words)))
    assert not (files / "runs").exists()


def test_arena_write_needs_names_that_tell_models_apart(files: Path):
    arena = arena_words(files)
    preflight(compose(words_of(files, "ours", *arena)))
    with pytest.raises(UserError, match=r"evaluate.anchor='west' is none of the baselines \(north\)"):
        preflight(compose(words_of(files, "ours", *arena, "evaluate.anchor=west")))
    with pytest.raises(UserError, match=r"run.name=north: a baseline has this name"):
        preflight(compose(words_of(files, "north", *arena)))


def test_texts_are_matched_by_their_words_and_others_are_counted(files: Path):
    more = [{"prompt_id": "0", "prompt": "Another request.", "answer": "x", "finish_reason": "stop", "num_tokens": 1}]
    lines = (files / "texts.jsonl").read_text().splitlines()
    write_lines(files / "texts.jsonl", [*reversed(lines), *more])
    config = compose(words_of(files, "matched"))
    found = read_texts(config, load_benchmark(config.benchmark))
    assert [(t.prompt_id, t.prompt, t.answer) for t in found.texts] == [
        (str(i), prompt, answer) for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True))
    ]
    assert found.unused == 1
    write_lines(files / "texts.jsonl", [*lines, '{"prompt_id": "0"}'])
    with pytest.raises(UserError, match=r"texts\.jsonl, text 4: no 'prompt' among \['prompt_id'\]"):
        read_texts(config, load_benchmark(config.benchmark))


def test_the_estimate_counts_every_question(files: Path):
    words = [*JUDGE, "judge.max_tokens=100", "judge.price_input=2", "judge.price_output=8"]
    config = compose(words_of(files, "asked", *words))
    benchmark = load_benchmark(config.benchmark)
    texts = [written(str(i), "a" * 300 * i, prompt) for i, prompt in enumerate(PROMPTS)]
    short, longer = (estimate_judging(config, benchmark, part) for part in (texts[:1], texts[:2]))
    assert (short.calls, longer.calls, longer.completion_tokens) == (1, 2, 200)
    # The second text has 300 bytes, 3 a token, in a question that is as long otherwise but for "rain" and "tea".
    assert longer.prompt_tokens - 2 * short.prompt_tokens == pytest.approx(100, abs=1)
    assert longer.cost == pytest.approx((2 * longer.prompt_tokens + 8 * 200) / 1e6)
    unwritten = estimate_judging(config, benchmark)
    assert unwritten.calls == 3
    # sampling.max_tokens=48: at most 5 bytes each, of which 3 are counted as one of the judge's.
    assert unwritten.prompt_tokens == pytest.approx(3 * (short.prompt_tokens + 80), abs=9)
    longest = [written(str(i), "tells" * 48, prompt) for i, prompt in enumerate(PROMPTS)]
    assert estimate_judging(config, benchmark, longest).prompt_tokens <= unwritten.prompt_tokens
    free = compose(words_of(files, "asked", *JUDGE))
    assert estimate_judging(free, benchmark, texts).cost is None
    checklist = [criterion_row("x"), criterion_row("y")]
    requests_file(files, [{"index": 1, "domain1": "a", "domain2": "b", "query": "q", "checklist": checklist}])
    config = compose(words_of(files, "asked", *JUDGE, "benchmark=writingbench", "evaluate.samples_per_request=3"))
    assert estimate_judging(config, load_benchmark(config.benchmark)).calls == 6


def test_a_small_judge_is_asked_and_never_believed(files: Path, tiny_model_dir: Path):
    config = compose(words_of(files, "small", f"evaluate.judge_path={tiny_model_dir}", "actors.max_num_seqs=5"))
    small = judge_facts(config)
    assert small is not None
    assert re.fullmatch(r"not a result: the judge has \dM parameters, and one of under 1B cannot judge writing",
                        str(small.not_a_result))  # fmt: skip
    assert "(not a result)" in small.identity
    assert judge_settings(config).at_once == 10
    served = judge_facts(compose(words_of(files, "served", *JUDGE)))
    assert served is not None
    assert (served.name, served.source, served.num_parameters, served.not_a_result) == ("judge", "endpoint", None, None)
    other = judge_facts(compose(words_of(files, "served", *JUDGE, "benchmark.judge_temperature=0.9")))
    assert other is not None
    assert other.identity != served.identity
    assert judge_facts(compose(words_of(files, "none"))) is None
    asked = {"asked": 3, "in_file": 4, "whole": 120, "complete": False, "left_out_too_long": []}
    one = {"mean": 60.0, "low": 50.0, "high": 70.0}
    facts = {"benchmark": "longbench_write", "requests": asked, "scores": {"s_l": one, "s_q": one, "s": one}}
    facts["judge"] = {"not_a_result": small.not_a_result}
    assert evaluate_headline({"evaluate": facts}) == (
        "longbench_write, 3 requests, not the whole benchmark: S_L, length 60.00 (95% interval 50.00 to 70.00); "
        "S_Q, quality not a result; (S_L + S_Q) / 2 not a result."
    )


def test_scores_against_other_baselines_are_not_compared(files: Path):
    config = compose(words_of(files, "ours", *JUDGE))
    numbers = []
    alone = arena("1", baselines=["north"])
    changed = replace(alone, baselines={"north": {"1": "north says more"}})
    for run, benchmark in (("one", alone), ("same", alone), ("more", arena("1")), ("other", changed)):
        found = Found(per_request={"arena_write": np.ones(1), "num_words": np.ones(1)}, judged=["arena_write"])
        (files / run).mkdir()
        write_evaluation(files / run, config, benchmark, found, {}, judge_facts(config), [])
        numbers.append(read_evaluation(files / run)[0])
    one, same, more, other = numbers
    assert compare(one, same, 10, 0)["not_compared"] == {}
    north = r"north \([0-9a-f]{8}\)"
    for another, against in ((more, rf"{north}, south \([0-9a-f]{{8}}\)"), (other, north)):
        said = compare(one, another, 10, 0)
        assert list(said["scores"]) == ["num_words"]
        assert re.fullmatch(rf"judged differently: .* against {north} and .* against {against}",
                            said["not_compared"]["arena_write"])  # fmt: skip


def test_the_plan_tells_texts_questions_and_both_engines(files: Path, tiny_model_dir: Path):
    words = [
        "evaluate.texts_path=null", f"model.path={tiny_model_dir}", f"evaluate.judge_path={tiny_model_dir}",
        "evaluate.judge_max_length_tokens=512", "benchmark.num_requests=2",
    ]  # fmt: skip
    text = plan_text(compose(words_of(files, "planned", *words)))
    assert "2 requests of 120 x 1 samples_per_request" in text
    assert "2 texts x at most 48 tokens = 96 tokens" in text
    assert "judge: 2 calls" in text
    assert "judge, after the texts: " in text


def test_the_plan_of_texts_that_are_there_needs_no_model(files: Path, tiny_model_dir: Path):
    absent = f"model.path={files / 'absent'}"
    text = plan_text(compose(words_of(files, "planned", absent)))
    assert "no engine writes" in text
    assert "judged scores will not be measured" in text
    assert not any(words in text for words in ("policy", "placement groups", "memory"))
    config = compose(words_of(files, "planned", absent, *JUDGE))
    benchmark = load_benchmark(config.benchmark)
    asked = estimate_judging(config, benchmark, read_texts(config, benchmark).texts)
    assert asked.words in plan_text(config)
    text = plan_text(compose(words_of(files, "planned", absent, f"evaluate.judge_path={tiny_model_dir}")))
    assert "actors      1 x" in text
    assert "judge, after the texts: " in text


def test_charts_place_marks_on_their_axes():
    svg = interval_chart("<t>", [Bar("first & last", 50.0, 25.0, 100.0), Bar("x", 0.0, None, None)])
    assert svg is not None
    # 128 points of labels, then 238 over 0 to 100.
    assert 'd="M187.5 17.0L366.0 17.0"' in svg
    assert 'cx="247.0" cy="17.0" r="3"' in svg
    assert 'aria-label="&lt;t&gt;"' in svg
    assert "<title>first &amp; last: 50 (25 to 100)</title>" in svg
    assert interval_chart("t", []) is None
    svg = words_chart("t", [("7", 1000.0, 100.0), ("8", 1000.0, 0.0)])
    assert svg is not None
    # Axes from 1 to 1,000 over 244 points, from (46, 266).
    assert 'cx="290.0" cy="103.3" r="2.2"' in svg
    assert 'cx="290.0" cy="266.0" r="2.2"' in svg
    assert "request 7: 1,000 asked for, 100 written" in svg
    assert words_chart("t", []) is None
