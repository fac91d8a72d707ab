"""`stage=pretrain`: the model reads on, documents packed to its context, from sources in given shares."""

from launch.supervised_stage import run_supervised
from lwz_ray.config import Config
from lwz_ray.corpus import budget, load_corpus


def run(config: Config) -> int:
    """Run the stage; return 0 when it completed, 130 when it was interrupted. Errors propagate after the summary."""
    # The first token of each piece is not trained: a token budget takes somewhat more steps than are foreseen.
    tokens_per_step = config.corpus.sequences_per_step * config.model.max_length_tokens
    return run_supervised(config, load_corpus, budget(config), tokens_per_step)
