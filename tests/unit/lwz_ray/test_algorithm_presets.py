"""What each preset of conf/algorithm changes against the paper's GRPO, and which combinations are refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from launch.compose import CONF
from tests.algorithms import algorithm

CHANGES: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr_grpo": {"advantage": "centred", "loss_aggregation": "fixed_length"},
    "dapo": {
        "clip_high": 0.28,
        "advantage": "normalise_sum",
        "loss_aggregation": "token_mean",
        "minibatches": 2,
        "drop_no_spread": True,
        "overlong_buffer_tokens": 4096,
    },
    "gspo": {"loss": "gspo", "clip_low": 3e-4, "clip_high": 4e-4, "minibatches": 2},
    "cispo": {"loss": "cispo", "clip_low": 1.0, "clip_high": 4.0, "loss_aggregation": "token_mean", "minibatches": 2},
    "rloo": {
        "loss": "reinforce",
        "advantage": "leave_one_out",
        "loss_aggregation": "fixed_length",
        "kl_estimator": "k1",
        "kl_in": "reward",
    },
    "reinforce_pp": {
        "advantage": "batch_whitened",
        "loss_aggregation": "token_mean",
        "minibatches": 2,
        "kl_estimator": "k1",
        "kl_in": "reward",
    },
    "gdpo": {"advantage": "normalise_sum_batch"},
    "ppo": {
        "advantage": "gae",
        "loss_aggregation": "token_mean",
        "minibatches": 2,
        "kl_estimator": "k1",
        "kl_in": "reward",
        "gae_lambda": 1.0,
    },
}


def test_every_preset_is_listed() -> None:
    assert sorted(p.stem for p in (CONF / "algorithm").glob("*.yaml")) == sorted(CHANGES)


@pytest.mark.parametrize("name", list(CHANGES))
def test_what_a_preset_changes(name: str) -> None:
    base, preset = algorithm("grpo").model_dump(), algorithm(name).model_dump()
    assert {k: v for k, v in preset.items() if v != base[k]} == CHANGES[name] | (
        {"name": name} if CHANGES[name] else {}
    )


def test_the_paper_s_numbers() -> None:
    grpo = algorithm("grpo")
    assert (grpo.clip_low, grpo.clip_high, grpo.kl_coefficient) == (0.2, 0.2, 0.0)
    assert (grpo.advantage, grpo.loss_aggregation) == ("mean_of_normalised", "sequence_mean")


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "gdpo"])
def test_one_step_a_batch_asks_for_no_pass_of_its_own(name: str) -> None:
    plain = algorithm(name)
    assert (plain.needs_annotation, plain.uses_reference, plain.uses_critic) == (False, False, False)
    assert algorithm(name, kl_coefficient=0.001, kl_in="loss").needs_annotation
    assert algorithm(name, epochs=2).needs_annotation
    assert not algorithm(name, epochs=2, old_logprobs="rollout", correction="none").needs_annotation


@pytest.mark.parametrize("name", ["dapo", "gspo", "cispo", "reinforce_pp", "ppo"])
def test_more_steps_a_batch_ask_for_old_logprobs(name: str) -> None:
    assert algorithm(name).needs_annotation
    assert algorithm(name).uses_critic == (name == "ppo")


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("grpo", {"kl_coefficient": 0.1, "kl_in": "reward"}, "the penalty needs one summed reward"),
        ("grpo", {"old_logprobs": "rollout"}, "with algorithm.old_logprobs=rollout use correction=none"),
        ("grpo", {"correction_low": 1.1}, r"correction_low=1.1 must be below algorithm.correction_high=1.1"),
        (
            "ppo",
            {"drop_no_spread": True},
            r"drop_no_spread=true with algorithm.advantage=gae: .* use drop_no_spread=false",
        ),
        ("reinforce_pp", {"drop_no_spread": True}, "advantage=batch_whitened"),
        ("grpo", {"clip_low": 1.5}, "less than or equal to 1"),
    ],
)
def test_combinations_that_are_refused(name: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        algorithm(name, **changes)
