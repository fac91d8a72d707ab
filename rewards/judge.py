"""A generative judge as a reward: one answer by a rubric, or two answers against each other."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Literal

from lwz_ray.chat import ChatFailedError
from lwz_ray.concurrency import together
from lwz_ray.config import JudgeConfig
from lwz_ray.errors import RewardFailure, UserError
from lwz_ray.records import Prompt
from rewards.judge_client import JudgeClient
from rewards.judge_prompts import PairQuestion, PointwiseQuestion

_REMEDY = "fill the column that data.columns.reference names, or set judge.mode=pointwise"


class Judge:
    """Scores answers in [0, 1] with a language model behind an OpenAI-compatible endpoint; implements `AnswerScorer`.

    `pointwise`: the rubric's score, mapped from `judge.scale`.

    `pairwise_reference`: 1 where the answer beats the prompt's reference, 0.5 for a tie, 0 where it loses.

    `pairwise_group`: the same against a random answer of the group, after Writing-Zero (arXiv 2506.00103, BRPO), which
    takes one of the group's own answers as a temporary reference and uses the outcome, +1 or -1, as the advantage.
    Ours: the reference is drawn by seed and prompt id; a tie counts half; the reference itself gets 0.5, what it would
    get against itself; and the outcome is a reward like any other, normalised in the group with the rest.

    With `judge.both_orders` a pair is asked twice, the order swapped, and the mean counts: a judge that always prefers
    what stands first gives 0.5. Without it, the order is drawn by seed, prompt id and answer.

    >>> judge = Judge(config.judge, seed=1, deadline_s=300)
    >>> await judge.score(prompt, ["Dear Sir, ..."])
    [0.6666666666666666]
    """

    def __init__(self, config: JudgeConfig, seed: int, deadline_s: float) -> None:
        """Check the settings, send nothing.

        `deadline_s`: how long a caller waits for one call of `score`. Waits for a place, requests and retries end after
        95% of it, so that what has been judged by then still reaches the caller.

        Raises UserError where the address or the key's variable cannot work.
        """
        self._config = config
        self._seed = seed
        self._limit_s = 0.95 * deadline_s
        self._client = JudgeClient(config, seed)
        self.scope: Literal["sample", "group"] = "group" if config.mode == "pairwise_group" else "sample"
        """What one call of `score` takes: any answers to a prompt, or those of a whole group."""

    @property
    def usage(self) -> dict[str, float]:
        """Return calls, retries, tokens, cost and failures by reason so far, as `judge/what`."""
        return self._client.usage

    async def score(self, prompt: Prompt, answers: Sequence[str]) -> list[float | RewardFailure]:
        """Return one value an answer, in order; where there is no verdict, why.

        Raises UserError where the endpoint refuses the key or does not know the address or the model.
        """
        stop_at = time.monotonic() + self._limit_s
        if self._config.mode == "pairwise_group":
            return await self._score_group(prompt, answers, stop_at)
        work = [partial(self._score_one, prompt, answer, stop_at) for answer in answers]
        return await together([self._guarded(one, stop_at) for one in work])

    async def check(self) -> None:
        """Ask one small question, so that a mistake in the settings shows before anything else is started.

        Raises UserError with what the endpoint said, or did not say.
        """
        probe = Prompt("check", "Write one sentence about tea.", "en", None, 0, reference="Tea is made of leaves.")
        found = await self.score(probe, ["Tea is best hot.", "Tea is hot."])
        failures = [value.reason for value in found if isinstance(value, RewardFailure)]
        if failures:
            raise UserError(f"judge.base_url={self._config.base_url} gave no verdict on a short text: {failures[0]}")

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _score_one(self, prompt: Prompt, answer: str, stop_at: float) -> float:
        config = self._config
        if config.mode == "pointwise":
            low, high = config.scale
            question = PointwiseQuestion(config.rubric, (low, high), prompt.text, answer)
            return await self._client.ask(question, stop_at)
        if prompt.reference is None:
            raise ChatFailedError(
                "no_reference",
                f"prompt {prompt.prompt_id} has no reference answer: {_REMEDY}",
                "data",
            )
        return await self._compare(prompt, answer, prompt.reference, stop_at)

    async def _score_group(self, prompt: Prompt, answers: Sequence[str], stop_at: float) -> list[float | RewardFailure]:
        if len(answers) < 2:
            raise ValueError(f"judge.mode=pairwise_group compares answers of one group, {len(answers)} given")
        drawn = self._draw(prompt.prompt_id, len(answers))
        others = [i for i in range(len(answers)) if i != drawn]
        pairs = [partial(self._compare, prompt, answers[i], answers[drawn], stop_at) for i in others]
        found = await together([self._guarded(pair, stop_at) for pair in pairs])
        scores: dict[int, float | RewardFailure] = dict(zip(others, found, strict=True))
        # Where no comparison came about, the reference was compared with nothing either.
        failures = [value for value in found if isinstance(value, RewardFailure)]
        scores[drawn] = failures[0] if len(failures) == len(others) else 0.5
        return [scores[i] for i in range(len(answers))]

    async def _compare(self, prompt: Prompt, answer: str, reference: str, stop_at: float) -> float:
        """Return 1, 0.5 or 0 for the answer against the reference; with both orders their mean."""
        rubric = self._config.rubric
        forward = PairQuestion(rubric, prompt.text, answer, reference)
        backward = PairQuestion(rubric, prompt.text, reference, answer)
        if self._config.both_orders:
            won, lost = await together([self._client.ask(q, stop_at) for q in (forward, backward)])
            return (won + 1.0 - lost) / 2
        if self._draw(f"{prompt.prompt_id}\n{answer}", 2) == 0:
            return await self._client.ask(forward, stop_at)
        return 1.0 - await self._client.ask(backward, stop_at)

    async def _guarded(self, verdict: Callable[[], Awaitable[float]], stop_at: float) -> float | RewardFailure:
        """Turn a failure, or the deadline, into a value; count it."""
        try:
            async with asyncio.timeout(max(0.0, stop_at - time.monotonic())):
                return await verdict()
        except TimeoutError:
            failed = ChatFailedError("deadline", f"no verdict of the judge within {self._limit_s:g} s")
        except ChatFailedError as error:
            failed = error
        self._client.count_failure(failed.reason)
        return RewardFailure("judge", str(failed), failed.blame)

    def _draw(self, what: str, num: int) -> int:
        """Return one of `num` indices, the same for the same seed and text in every process."""
        digest = hashlib.blake2b(f"{self._seed}\n{what}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % num


def check_references(config: JudgeConfig, prompts: Sequence[Prompt]) -> None:
    """Refuse prompts none of which has the reference that judge.mode=pairwise_reference compares with."""
    if config.mode == "pairwise_reference" and not any(prompt.reference is not None for prompt in prompts):
        raise UserError(
            f"judge.mode=pairwise_reference: none of {len(prompts)} prompts has a reference answer; {_REMEDY}"
        )
