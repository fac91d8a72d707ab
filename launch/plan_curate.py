"""The part of the plan that belongs to `stage=curate`: how much is written and kept."""

from launch.memory import Estimate, rollout_estimate
from launch.shapes import ModelShape
from lwz_ray.config import Config

NO_MODEL = "  no model is needed: none of the Ray actors of this plan is started"


def estimates(config: Config, shape: ModelShape) -> list[Estimate]:
    """Return the memory of the stage's engines."""
    return [rollout_estimate(config, shape)]


def batch(config: Config) -> list[str]:
    """Return the lines about what is made; sources are read, nothing is started."""
    if config.recipe == "chat_logs":
        return _chat_logs(config)
    return _plans(config) if config.recipe == "distill_plans" else _degradations(config)


def _degradations(config: Config) -> list[str]:
    from launch.stages.curate_degradations import needs_model, read_sources

    curate, limit = config.curate, config.sampling.max_tokens
    sources, _ = read_sources(config, None)
    num_texts = sum(curate.samples_per_prompt if texts is None else len(texts) for _, texts in sources)
    lines = [
        f"recipe {config.recipe}",
        f"  {num_texts} texts to {len(sources)} prompts, {len(curate.kinds)} kinds: at most "
        f"{num_texts * len(curate.kinds)} pairs; held out: {curate.held_out_share:g} of the prompts",
    ]
    if curate.texts_path is None:
        tokens = num_texts * limit
        lines.append(
            f"  {num_texts} texts x at most {limit:,} tokens = {tokens:,} tokens, and at most as many to spoil them"
        )
    return lines if needs_model(config) else [*lines, NO_MODEL]


def _chat_logs(config: Config) -> list[str]:
    logs = config.curate.chat_logs
    rows = "all rows" if logs.max_rows is None else f"the first {logs.max_rows:,} rows"
    lines = [
        "recipe chat_logs",
        f"  {rows} of each of {len(logs.paths)} sources; who is asked: {logs.asked}, at most "
        f"{logs.max_attempts} times a request",
    ]
    return lines if logs.asked == "engine" else [*lines, NO_MODEL]


def _plans(config: Config) -> list[str]:
    plans = config.curate.plans
    limit = "all" if plans.max_plans is None else f"at most {plans.max_plans:,}"
    return ["recipe distill_plans", f"  {limit} plans of the samples of {plans.run}", NO_MODEL]
