"""The cross-checks of the config tree: each names the fields and shows the arithmetic."""

import pytest
from pydantic import ValidationError

from launch.compose import compose
from lwz_ray.config import Config


@pytest.fixture
def tree(monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return compose([]).model_dump()


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("sampling", {"max_tokens": 200}, "data.max_prompt_tokens=400 + sampling.max_tokens=200 = 600 exceeds"),
        ("learners", {"microbatch_tokens": 500}, "learners.microbatch_tokens=500 is below model.max_length_tokens=512"),
        ("algorithm", {"minibatches": 3}, "algorithm.minibatches=3 exceeds groups_per_step=2"),
        (
            "algorithm",
            {"kl_coefficient": 0.1, "kl_in": "reward"},
            "algorithm.kl_in=reward with algorithm.advantage=mean_of_normalised: the penalty needs one summed reward",
        ),
        (
            "algorithm",
            {"old_logprobs": "rollout"},
            "algorithm.correction=sequence_truncated corrects from the engine's",
        ),
        ("algorithm", {"correction_low": 3.0}, "algorithm.correction_low=3 must be below algorithm.correction_high="),
        ("learners", {"sequence_parallel": 3}, "learners.ranks=2 is no multiple of learners.sequence_parallel=3"),
        ("learners", {"deepspeed_config": "ds.json"}, "learners.deepspeed_config=ds.json but learners.backend=fsdp"),
        ("learners", {"liger": True}, "learners.liger=true needs learners.device=cuda"),
        ("learners", {"device": "cuda"}, "actors.num_gpus=0 is below actors.tensor_parallel_size=1"),
        ("weights", {"transport": "nccl"}, "weights.transport=nccl needs learners.device=cuda"),
        ("template", {"zh": "没有"}, "template.zh has no {request} slot"),
        ("rewards", {"weights": {"length": 0.0}}, "every weight is 0, nothing to learn from"),
    ],
)
def test_cross_checks(tree: dict, section: str, values: dict, message: str):
    tree[section] |= values
    with pytest.raises(ValidationError) as caught:
        Config.model_validate(tree)
    assert message in str(caught.value)


def test_a_writing_weight_needs_a_model(tree: dict):
    tree["rewards"]["weights"]["writing"] = 1.0
    tree["rewards"]["writing"]["path"] = None
    with pytest.raises(ValidationError, match=r"rewards\.weights\.writing > 0 but rewards\.writing\.path is null"):
        Config.model_validate(tree)


def test_types_are_strict_and_the_tree_is_frozen(tree: dict):
    with pytest.raises(ValidationError, match="steps"):
        Config.model_validate({**tree, "steps": "3"})
    config = Config.model_validate(tree)
    with pytest.raises(ValidationError, match="frozen"):
        config.steps = 5
    assert (config.samples_per_step, config.rewards.active) == (8, ("length", "format"))
