"""Plans of a run as documents: which samples give one, and which stay where there are too many."""

from typing import Any

from lwz_ray.config_curate import PlansConfig
from lwz_ray.corpus_plans import LEFT_OUT, distill


def line(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "step": number,
        "split": "train",
        "prompt_id": f"p{number}",
        "language": "en",
        "prompt": f"Write about {number}.",
        "sample_index": 0,
        "completion": f" First, part {number}. Then the rest.</think><answer>Text.</answer>",
        "rewards": {"length": 0.8},
        **changes,
    }


def settings(**changes: Any) -> PlansConfig:
    usual = {"run": "x", "min_reward": 0.5, "min_plan_words": 4, "on_unfinished": "drop", "max_plans": None}
    return PlansConfig.model_validate(usual | changes)


def test_a_plan_becomes_a_document_with_its_request():
    plans, counts = distill([line(3)], settings(), "<think>")
    assert [p.as_dict() for p in plans] == [
        {
            "text": "Write about 3.\n\n<think>\nFirst, part 3. Then the rest.\n</think>\n",
            "prompt_id": "p3",
            "language": "en",
            "request": "Write about 3.",
            "plan": "First, part 3. Then the rest.",
            "num_words": 6,
            "length_reward": 0.8,
            "step": 3,
            "sample_index": 0,
        }
    ]
    assert counts == {"read": 1, "kept": 1, **dict.fromkeys(LEFT_OUT, 0)}


def test_every_sample_without_a_plan_is_counted_by_its_reason():
    lines = [
        line(1),
        line(2, superseded=True),
        line(3, split="eval_before"),
        line(4, completion="</think><answer>Text.</answer>"),
        line(5, completion=" First one part, then another, then"),
        line(6, rewards={"length": {"failure": "no range", "blame": "data", "action": "abstain"}}),
        line(7, rewards={"length": 0.49}),
        line(8, completion=" Too short.</think><answer>Text.</answer>"),
        line(9, completion=line(1)["completion"]),
        line(10),
    ]
    plans, counts = distill(lines, settings(), "<think>")
    assert [p.step for p in plans] == [1, 10]
    assert counts == {"read": 10, "kept": 2, **dict.fromkeys(LEFT_OUT, 1), "over_limit": 0}
    assert counts["read"] == counts["kept"] + sum(counts[name] for name in LEFT_OUT)
    # A policy that never ends its plan still has some to look at; one without a range is taken where none is asked for.
    plans, counts = distill(lines, settings(min_reward=0.0, on_unfinished="keep"), "<think>")
    assert [p.step for p in plans] == [1, 5, 6, 7, 10]
    assert plans[1].text == "Write about 5.\n\n<think>\nFirst one part, then another, then\n</think>\n"
    assert plans[2].length_reward is None


def test_of_too_many_the_best_stay_in_their_order():
    long = " A longer plan of quite a few more words.</think><answer>Text.</answer>"
    lines = [
        line(1, rewards={"length": 0.9}),
        line(2, rewards={"length": 1.0}),
        line(3, rewards={"length": 0.9}, completion=long),
        line(4, rewards={"length": 0.9}),
    ]
    chosen = {n: distill(lines, settings(max_plans=n), "<think>") for n in (1, 2, 3)}
    # By the length reward, then by the plan's length, then the latest.
    assert {n: [p.step for p in plans] for n, (plans, _) in chosen.items()} == {1: [2], 2: [2, 3], 3: [2, 3, 4]}
    assert (chosen[1][1]["kept"], chosen[1][1]["over_limit"]) == (1, 3)


def test_a_template_without_prefill_and_a_chinese_plan():
    found = line(1, language="zh", completion="<think>先写开头，再写结尾。</think><answer>正文</answer>")
    plans, _ = distill([found], settings(), "")
    assert (plans[0].plan, plans[0].num_words) == ("先写开头，再写结尾。", 8)
