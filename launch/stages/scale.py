"""`stage=scale`: ask a run that goes on for another number of rollout actors or reward replicas."""

import sys
from collections.abc import Sequence

from launch.control import Answer, ask, heartbeat_path
from launch.control_actor import ask_cluster
from launch.preflight import check_address
from launch.run_folder import run_path
from lwz_ray.config import Config
from lwz_ray.errors import UserError, WaitTimeoutError


def run(config: Config, keys: Sequence[str]) -> int:
    """Ask for each of the keys, such as `actors.replicas`, and print the answers, a line each; return 0 or 1.

    Through the run folder where the run's heartbeat is seen from here, else through the cluster. Raises UserError where
    no run goes on, and where the run refuses.
    """
    rooms = {"actors.replicas": config.actors.replicas, "rewards.replicas": config.rewards.replicas}
    requests = {key: rooms[key] for key in keys}
    folder = run_path(config.run)
    try:
        if config.cluster.address == "local" or heartbeat_path(folder).exists():
            return _told([ask(folder, key, value) for key, value in requests.items()])
        check_address(config)
        return _told(ask_cluster(config, requests))
    except WaitTimeoutError as error:
        print(f"error: {error}; it may still act on the request", file=sys.stderr)
        return 1


def _told(answers: Sequence[Answer]) -> int:
    for answer in answers:
        if answer.status == "done":
            print(answer.message)
    for answer in answers:
        if answer.status == "failed":
            print(f"error: {answer.message}", file=sys.stderr)
    refused = [answer.message for answer in answers if answer.status == "refused"]
    if refused:
        raise UserError("; ".join(refused))
    return 1 if any(answer.status == "failed" for answer in answers) else 0
