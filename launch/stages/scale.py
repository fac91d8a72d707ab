"""`stage=scale`: ask a run that goes on for another number of reward replicas."""

import sys

from launch.control import ask
from launch.run_folder import run_path
from lwz_ray.config import Config
from lwz_ray.errors import UserError, WaitTimeoutError


def run(config: Config) -> int:
    """Print the run's answer; return 0 where it was done, 1 where it failed or did not answer.

    Raises UserError where no run goes on in the folder, and where the run refuses.
    """
    folder = run_path(config.run)
    try:
        answer = ask(folder, "rewards.replicas", config.rewards.replicas)
    except WaitTimeoutError as error:
        print(f"error: {error}; it may still act on the request", file=sys.stderr)
        return 1
    if answer.status == "refused":
        raise UserError(answer.message)
    if answer.status == "failed":
        print(f"error: {answer.message}", file=sys.stderr)
        return 1
    print(answer.message)
    return 0
