"""`stage=sft`: the model learns the answers of chat pairs; what is asked is read and not trained on."""

from launch.supervised_stage import run_supervised
from lwz_ray.chat_pairs import budget, load_chat_pairs
from lwz_ray.config import Config


def run(config: Config) -> int:
    """Run the stage; return 0 when it completed, 130 when it was interrupted. Errors propagate after the summary."""
    return run_supervised(config, load_chat_pairs, budget(config), None)
