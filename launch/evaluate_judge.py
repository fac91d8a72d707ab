"""The judge of an evaluation: who it is, how it is asked, and whether its scores are worth anything."""

from dataclasses import dataclass

from launch.chat_open import chat_source
from launch.preflight_disk import num_parameters
from lwz_ray.benchmarks.judging import JudgeSettings
from lwz_ray.benchmarks.questions import CriterionQuestion, MatchQuestion, QualityQuestion
from lwz_ray.benchmarks.records import Criterion
from lwz_ray.config import Config

SMALL = 1_000_000_000
"""A judge of fewer parameters writes verdicts that follow the form and say nothing; the limit is ours."""
NO_JUDGE = "no judge: judge.base_url and evaluate.judge_path are null"


@dataclass(frozen=True, slots=True)
class JudgeFacts:
    """What is known of the judge before it is asked."""

    name: str
    source: str
    """endpoint | engine"""
    num_parameters: int | None
    """None where only its server knows."""
    identity: str
    """Everything that its verdicts depend on but the texts: two evaluations are compared only where it is the same."""

    @property
    def not_a_result(self) -> str | None:
        """Return why its scores must not be read as results; None where nothing speaks against them."""
        if self.num_parameters is None or self.num_parameters >= SMALL:
            return None
        return (
            f"not a result: the judge has {self.num_parameters / 1e6:,.0f}M parameters, and one of under "
            f"{SMALL / 1e9:g}B cannot judge writing"
        )


def judge_facts(config: Config) -> JudgeFacts | None:
    """Return who judges; None where nobody does. A local judge must be a folder that is here."""
    source = chat_source(config, "judge")
    if source is None:
        return None
    path = config.evaluate.judge_path
    if source == "endpoint":
        name, size = config.judge.model or "", None
    else:
        assert path is not None
        name, size = path, num_parameters("evaluate.judge_path", path)
    benchmark = config.benchmark
    small = "" if size is None or size >= SMALL else " (not a result)"
    identity = (
        f"{name}{small}, temperature {benchmark.judge_temperature:g}, top-p {benchmark.judge_top_p:g}, at most "
        f"{config.judge.max_tokens} tokens, questions {_wording(config)}"
    )
    return JudgeFacts(name, source, size, identity)


def judge_settings(config: Config) -> JudgeSettings:
    """Return how the judge is asked; an engine of ours takes as many questions as it decodes, and as many wait."""
    actors, benchmark = config.actors, config.benchmark
    at_once = 2 * actors.replicas * actors.max_num_seqs
    if chat_source(config, "judge") == "endpoint":
        at_once = config.judge.max_concurrency
    return JudgeSettings(
        temperature=benchmark.judge_temperature,
        top_p=benchmark.judge_top_p,
        max_tokens=config.judge.max_tokens,
        seed=config.seed,
        at_once=at_once,
    )


def _wording(config: Config) -> str:
    """Return a word that changes with the wording of the benchmark's questions."""
    questions = {
        "longbench_write": QualityQuestion("", ""),
        "writingbench": CriterionQuestion("", "", Criterion("", "", {})),
        "arena_write": MatchQuestion("", "", ""),
    }
    return questions[config.benchmark.name].key[-8:]
