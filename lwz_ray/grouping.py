"""Making one group: generate, parse, score, each sample as soon as it ends. Training and evaluation share it."""

import contextlib
import time
from dataclasses import dataclass, field

import numpy as np

from lwz_ray.config import TemplateConfig
from lwz_ray.encoding import PromptEncoder
from lwz_ray.protocols import Rollouts, Scorer
from lwz_ray.records import Completion, Group, Prompt, RolloutRequest, Sample
from lwz_ray.templates import parse_completion
from lwz_ray.text import count_words


@dataclass(frozen=True, slots=True, eq=False)
class MadeGroup:
    """A group and what it took."""

    group: Group
    generate_s: float
    """Until the last sample ended."""
    score_s: float
    """Waited for scores after that; the rest of the scoring was hidden behind generation."""
    staleness: int = field(default=0)


class GroupMaker:
    """One prompt in, one scored group out."""

    def __init__(self, rollouts: Rollouts, scorer: Scorer, encoder: PromptEncoder, template: TemplateConfig) -> None:
        self._rollouts = rollouts
        self._scorer = scorer
        self._encoder = encoder
        self._template = template

    async def make(self, prompt: Prompt, group_id: int, num_samples: int, seed: int, round_index: int = 0) -> MadeGroup:
        """Return the scored group; the same seed on the same weights gives the same texts.

        round_index: the training round that the group is for; lower ones are written first.
        """
        started = time.monotonic()
        prompt_token_ids = self._encoder.encode(prompt)
        scoring = self._scorer.open(prompt, num_samples)
        try:
            request = RolloutRequest(
                prompt_token_ids.tolist(),
                num_samples,
                seed,
                requested_words=prompt.length_range[1] if prompt.length_range else 0,
                round_index=round_index,
            )
            async with contextlib.aclosing(self._rollouts.stream(request)) as ended:
                async for index, completion in ended:
                    scoring.add(self._sample(prompt, prompt_token_ids, group_id, index, completion))
            generated = time.monotonic()
            scored = await scoring.finish()
        except BaseException:
            scoring.cancel()
            raise
        return MadeGroup(Group(group_id, prompt, tuple(scored)), generated - started, time.monotonic() - generated)

    def _sample(
        self, prompt: Prompt, prompt_token_ids: np.ndarray, group_id: int, index: int, completion: Completion
    ) -> Sample:
        parsed = parse_completion(completion.text, self._template.arm, self._template.prefill)
        return Sample(
            group_id=group_id,
            sample_index=index,
            prompt=prompt,
            prompt_token_ids=prompt_token_ids,
            completion=completion,
            parsed=parsed,
            num_words=count_words(parsed.answer or ""),
        )


def group_seed(seed: int, stream: int, group_id: int) -> int:
    """Return a 31-bit sampling seed. stream: 0 training, 1 evaluation."""
    return int(np.random.SeedSequence([seed, stream, group_id]).generate_state(1)[0] & 0x7FFFFFFF)
