"""The part of the plan that belongs to `stage=curate`: how much is written and kept."""

from lwz_ray.config import Config


def batch_curate(config: Config) -> list[str]:
    """Return the lines about texts and pairs; the source is read, nothing is started."""
    from launch.stages.curate import needs_model, read_sources

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
    if not needs_model(config):
        lines.append("  no model is needed: none of the Ray actors below is started")
    return lines
