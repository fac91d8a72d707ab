"""Algorithms in the whole loop: dynamic sampling, old logprobs, KL in the reward, a refreshed reference, a critic."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lwz_ray.errors import InfrastructureError
from lwz_ray.packing import split_over_ranks
from lwz_ray.policy_update import PolicyUpdate
from lwz_ray.protocols import GroupScoring
from lwz_ray.records import Prompt, Sample, TrainSample
from rewards.scorer import RewardSet
from tests.loop_parts import System, make_config, make_system

ONE_REWARD = {"weights": {"length": 1.0, "writing": 0.0, "format": 0.0}}


class FlatScorer:
    """Scores with the real rewards; groups chosen by their number, as they finish, get one reward for all samples."""

    def __init__(self, config: Any, flat: Callable[[int], bool]) -> None:
        self._rewards, self._flat, self._finished = RewardSet(config.rewards), flat, 0

    def open(self, prompt: Prompt, num_samples: int) -> "FlatScoring":
        return FlatScoring(self._rewards.open(prompt, num_samples), self._next)

    def _next(self) -> bool:
        self._finished += 1
        return self._flat(self._finished - 1)


class FlatScoring:
    """One group of `FlatScorer`; where it is not flat, the first sample is made better than the rest."""

    def __init__(self, inner: GroupScoring, is_flat: Callable[[], bool]) -> None:
        self._inner, self._is_flat = inner, is_flat
        self.add, self.cancel = inner.add, inner.cancel

    async def finish(self) -> list[Sample]:
        scored, flat = await self._inner.finish(), self._is_flat()
        for sample in scored:
            sample.rewards["length"] = 0.5 if flat or sample.sample_index else 1.0
        return scored


async def test_dynamic_sampling_makes_others_in_the_place_of_groups_without_spread(tmp_path: Path) -> None:
    config = make_config(tmp_path, steps=3, max_staleness=1, rewards=ONE_REWARD, algorithm={"drop_no_spread": True})
    system = await make_system(config, FlatScorer(config, lambda call: call % 3 != 0))
    await system.run()
    account = system.loop.ledger.as_dict()
    # Of three groups one is kept; the last steps need no more than their own.
    assert (account["trained"], account["in_flight"], set(account["dropped"])) == (6, 0, {"no_spread"})
    assert account["admitted"] == 6 + account["dropped"]["no_spread"] and account["dropped"]["no_spread"] >= 10
    assert [r["rewards/length_no_spread"] for r in system.records.steps] == [0.0] * 3
    trained = [i for ids in system.records.group_ids for i in ids]
    assert len(set(trained)) == 6


async def test_groups_without_spread_are_trained_where_nobody_asked_for_others(tmp_path: Path) -> None:
    config = make_config(tmp_path, steps=1, rewards=ONE_REWARD)
    system = await make_system(config, FlatScorer(config, lambda call: True))
    await system.run()
    assert system.loop.ledger.dropped == {} and system.records.column("rewards/length_no_spread") == [1.0]


async def test_prompts_that_never_spread_end_the_run_with_a_remedy(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"rewards": ONE_REWARD, "failures": {"max_consecutive_dropped_groups": 5}}
    config = make_config(tmp_path, algorithm={"drop_no_spread": True}, **changes)
    system = await make_system(config, FlatScorer(config, lambda call: True))
    remedy = (
        r"5 groups in a row were dropped, the last as no_spread: all samples of prompt p\d have the same rewards; use "
        r"prompts that are neither too easy nor too hard, raise group_size or sampling.temperature, or set "
        r"algorithm.drop_no_spread=false"
    )
    with pytest.raises(InfrastructureError, match=remedy):
        await system.run()


def logprobs_of(table: torch.Tensor, samples: list[TrainSample]) -> list[np.ndarray]:
    """Return each sample's trained tokens' logprobs under a table, at the temperature of `make_config`."""
    out = []
    for sample in samples:
        (row,) = split_over_ranks([sample], 40, 1)[0]
        everything = torch.log_softmax(table[torch.from_numpy(row.token_ids[row.rows])] / 0.9, dim=1)
        out.append(everything.gather(1, torch.from_numpy(row.targets)[:, None])[:, 0].numpy())
    return out


@pytest.mark.parametrize("schedule", [{"minibatches": 2}, {"epochs": 2}])
async def test_every_optimizer_step_measures_from_before_the_first(tmp_path: Path, schedule: dict[str, int]) -> None:
    system = await make_system(make_config(tmp_path, steps=2, algorithm=schedule))
    tables = [system.learner.logits.detach().clone()]
    system.records.on_step = lambda step: tables.append(system.learner.logits.detach().clone())
    await system.run()
    assert system.loop.progress.optimizer_steps == 4
    for before, after, minibatches in zip(tables, tables[1:], system.learner.minibatches, strict=False):
        assert len(minibatches) == 2
        for samples in minibatches:
            for sample, then, now in zip(
                samples, logprobs_of(before, samples), logprobs_of(after, samples), strict=True
            ):
                assert sample.facts is not None and sample.facts.old_logprobs is not None
                found = sample.facts.old_logprobs[sample.loss_mask]
                assert found.tobytes() == then.tobytes() and found.tobytes() != now.tobytes()
    # The second step of each batch saw a policy that had moved.
    assert min(system.records.column("train/ratio_shift")) > 1e-3


async def test_one_optimizer_step_a_batch_asks_for_nothing_beforehand(tmp_path: Path) -> None:
    system = await make_system(make_config(tmp_path, steps=1))
    await system.run()
    assert [s.facts for m in system.learner.minibatches[0] for s in m] == [None] * 8


async def advantages_after(tmp_path: Path, **algorithm: Any) -> tuple[list[np.ndarray], System]:
    """Return the advantages of the second step's samples: then the policy has left the reference."""
    changes: dict[str, Any] = {"steps": 2, "rewards": ONE_REWARD}
    config = make_config(tmp_path, algorithm={"advantage": "centred", **algorithm}, **changes)
    system = await make_system(config)
    await system.run()
    return [s.advantages[s.loss_mask] for m in system.learner.minibatches[1] for s in m], system


async def test_kl_in_the_reward_changes_advantages_and_in_the_loss_does_not(tmp_path: Path) -> None:
    penalty = {"kl_coefficient": 0.5, "kl_estimator": "k1"}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    rewarded, system = await advantages_after(tmp_path / "a", kl_in="reward", **penalty)
    first = [s for m in system.learner.minibatches[0] for s in m]
    assert all(s.facts is not None and np.array_equal(s.facts.old_logprobs, s.facts.ref_logprobs) for s in first)  # type: ignore[arg-type]
    second = [s for m in system.learner.minibatches[1] for s in m]
    # By hand: length reward minus half the summed difference, minus the mean of the group of four.
    totals = []
    for sample in second:
        assert sample.facts is not None
        old, ref = sample.facts.old_logprobs, sample.facts.ref_logprobs
        assert old is not None and ref is not None
        totals.append(-0.5 * float((old - ref)[sample.loss_mask].sum(dtype=np.float64)))
    rewards = [s.rewards["length"] for s in system.records.samples[-8:]]
    summed = np.asarray([r + t for r, t in zip(rewards, totals, strict=True)]).reshape(2, 4)  # type: ignore[operator]
    expected = (summed - summed.mean(axis=1, keepdims=True)).ravel()
    np.testing.assert_allclose([a[0] for a in rewarded], expected, atol=1e-6)
    assert max(abs(t) for t in totals) > 1e-3
    assert system.records.column("rewards/kl")[0] == 0.0
    assert system.records.column("rewards/kl")[1] == pytest.approx(np.mean(totals), abs=1e-6)
    in_loss, other = await advantages_after(tmp_path / "b", kl_in="loss", **penalty)
    plain = np.asarray([s.rewards["length"] for s in other.records.samples[-8:]], dtype=float).reshape(2, 4)
    centred = (plain - plain.mean(axis=1, keepdims=True)).ravel()
    np.testing.assert_allclose([a[0] for a in in_loss], centred, atol=1e-6)
    assert "rewards/kl" not in other.records.steps[1] and "train/kl" in other.records.steps[1]


async def test_the_reference_is_refreshed_every_n_steps(tmp_path: Path) -> None:
    changes = {"kl_coefficient": 0.01, "reference_refresh_steps": 2, "kl_estimator": "k3"}
    system = await make_system(make_config(tmp_path, steps=5, algorithm=changes))
    await system.run()
    kl = system.records.column("train/kl")
    # Steps 1, 3 and 5 begin at the reference.
    assert [k == 0.0 for k in kl] == [True, False, True, False, True]


PPO: dict[str, Any] = {"advantage": "gae", "minibatches": 2, "loss_aggregation": "token_mean", "gae_lambda": 1.0}


async def test_ppo_learns_with_its_critic(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"steps": 25, "group_size": 8, "critic": {"warmup_steps": 0, "value_clip": None}}
    system = await make_system(make_config(tmp_path, algorithm=PPO, **changes))
    await system.run()
    rewards = system.records.column("rewards/total")
    assert np.mean(rewards[:2]) < 0.7 and np.mean(rewards[-4:]) > 0.9
    assert system.records.column("critic/loss")[-1] < system.records.column("critic/loss")[0]
    # Policy and critic saw the same samples, and nothing of the critic's reports as the policy's.
    assert system.critic is not None
    assert system.critic.calls == system.learner.calls == 25
    assert {"critic/tokens", "critic/explained_variance", "train/clip_fraction"} <= set(system.records.steps[0])


async def test_the_critic_warms_up_alone(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"steps": 4, "max_staleness": 1, "critic": {"warmup_steps": 2}}
    system = await make_system(make_config(tmp_path, algorithm=PPO, **changes))
    assert system.critic is not None
    await system.run()
    assert (system.critic.calls, system.learner.calls) == (4, 2)
    assert system.records.column("policy_version") == [0, 0, 1, 2] and system.weights.published == [1, 2]
    assert ["train/loss" in m for m in system.records.steps] == [False, False, True, True]
    progress = system.loop.progress
    assert (progress.step, progress.policy_version, progress.optimizer_steps) == (4, 2, 4)
    assert system.loop.ledger.as_dict() == {"rounds": 4, "admitted": 8, "trained": 8, "dropped": {}, "in_flight": 0}
    for sample in system.critic.minibatches[0][0]:
        assert sample.facts is not None and sample.facts.values is not None and sample.returns is not None
        assert not sample.facts.values.any()  # before its first step the critic expects nothing


async def test_a_critic_that_only_skips_ends_the_run(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"critic": {"warmup_steps": 0}, "failures": {"max_consecutive_skipped_steps": 3}}
    system = await make_system(make_config(tmp_path, algorithm=PPO, **changes))
    assert system.critic is not None
    system.critic.poisoned = {1, 2}
    with pytest.raises(
        InfrastructureError, match=r"4 optimizer steps in a row .* look at the critic, whose rate is cr"
    ):
        await system.run()


async def test_policy_and_critic_resume_together(tmp_path: Path) -> None:
    config = make_config(
        tmp_path, steps=4, algorithm=PPO | {"kl_coefficient": 0.1, "kl_in": "reward", "reference_refresh_steps": 1},
        critic={"warmup_steps": 1}, run={"checkpoint_every_steps": 2},
    )  # fmt: skip
    whole = await make_system(config)
    await whole.run()
    resumed = await make_system(config)
    state, buffer = await resumed.store.load(tmp_path / "checkpoints" / "step_000002")
    resumed.loop.restore(state, buffer)
    await resumed.publish()
    await resumed.run()
    for key in ("train/loss", "train/kl", "critic/loss", "rewards/kl"):
        assert resumed.records.column(key) == [m[key] for m in whole.records.steps[2:]]
    for one, other in ((resumed.learner, whole.learner), (resumed.critic, whole.critic)):
        assert one is not None and other is not None
        np.testing.assert_array_equal(one.table.detach(), other.table.detach())


async def test_a_critic_is_there_exactly_where_the_algorithm_has_one(tmp_path: Path) -> None:
    system = await make_system(make_config(tmp_path))
    with pytest.raises(ValueError, match=r"algorithm.advantage=gae with no critic"):
        PolicyUpdate(make_config(tmp_path, algorithm=PPO), system.learner, None)
    with pytest.raises(ValueError, match=r"algorithm.advantage=mean_of_normalised with a critic"):
        PolicyUpdate(make_config(tmp_path), system.learner, system.learner)
