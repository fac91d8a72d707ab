"""A group of learner ranks as Ray actors, and what the tests that publish its weights to vLLM share."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np

from learners.group import LearnerGroup
from lwz_ray.batching import minibatches_of
from lwz_ray.config import Config
from lwz_ray.credit import Credit
from lwz_ray.records import Completion, Group, ParsedText, Prompt, Sample
from lwz_ray.staging import StagedWeights

PROMPT_IDS = list(range(1000, 1040))


class Ranks:
    """Two learner ranks as Ray actors, and the calls of their group."""

    def __init__(self, handles: list[Any], config: Config) -> None:
        self.handles = handles
        room = config.learners
        ranks: list[Any] = [RankCalls(h) for h in handles]
        self.group = LearnerGroup(ranks, room.microbatch_tokens, timeout_s=60.0)

    async def stage(self, policy_version: int) -> list[str]:
        """Return the header paths that rank 0 wrote on this host."""
        calls = [h.stage_weights.remote(policy_version) for h in self.handles]
        staged: StagedWeights = (await asyncio.wait_for(asyncio.gather(*calls), 60.0))[0]
        return list(staged.header_paths)


class RankCalls:
    """A LearnerActor handle as `LearnerGroup` calls it."""

    def __init__(self, handle: Any) -> None:
        self.train, self.export = handle.train.remote, handle.export.remote
        self.annotate = handle.annotate.remote


def as_group(completions: list[Completion]) -> Group:
    """Wrap completions of PROMPT_IDS, whatever they say, as one group to train on."""
    prompt = Prompt("p", "Write.", "en", None, 0)
    parsed = ParsedText(None, None, False, 0.0)
    ids = np.asarray(PROMPT_IDS, dtype=np.int32)
    return Group(0, prompt, tuple(Sample(0, i, prompt, ids, c, parsed, 0) for i, c in enumerate(completions)))


def minibatches(completions: list[Completion], config: Config) -> list[Any]:
    """Return four completions as one optimizer batch, two rewarded and two punished."""
    credits = [Credit(np.full(c.num_tokens, a)) for c, a in zip(completions, (1.0, -1.0, 0.5, -0.5), strict=True)]
    return minibatches_of([as_group(completions)], [credits], None, config.algorithm, config.sampling.max_tokens)


def mean_distance(model: Any, completions: list[Completion], temperature: float) -> float:
    """Return the mean over tokens of |rollout logprob - logprob of a plain float32 forward|, in nats."""
    import torch

    distances = []
    for completion in completions:
        ids = torch.tensor([[*PROMPT_IDS, *completion.token_ids.tolist()]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(PROMPT_IDS) - 1 : -1] / temperature
        picked = torch.log_softmax(logits, dim=-1).gather(1, ids[0, len(PROMPT_IDS) :, None])[:, 0]
        distances.append(np.abs(picked.numpy() - completion.rollout_logprobs))
    return float(np.concatenate(distances).mean())


def load_float32(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
