"""What is said of a lost Ray actor, in Ray's words but without its advice; and whose failure it is."""

import socket

import pytest
from ray.exceptions import ActorUnschedulableError, OutOfMemoryError, RayActorError, RayError

from launch.cluster import join, reason_of, started
from lwz_ray.errors import InfrastructureError, UserError, WaitTimeoutError

KILLED = """The actor died unexpectedly before finishing this task.
\tclass_name: LearnerActor
\tpid: 1058
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was killed \
by the OOM killer due to high memory usage, (2) ray stop --force was called."""
OUT_OF_MEMORY = """Task was killed due to the node running low on memory.
Memory on the node (IP: 10.0.0.1, ID: 5f) where the lease was running was 15.3GB / 16.0GB (0.956).
Refer to the documentation on how to address the out of memory issue."""


def test_a_reason_is_one_line():
    assert reason_of(RayActorError(error_msg=KILLED)) == (
        "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
        "Worker unexpectedly exits with a connection error code 2. End of file."
    )
    assert reason_of(OutOfMemoryError(OUT_OF_MEMORY)) == "Task was killed due to the node running low on memory."
    assert reason_of(RayActorError(error_msg="killed\nbecause it was asked to")) == "because it was asked to"
    assert reason_of(TimeoutError()) == "TimeoutError"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RayActorError(error_msg="killed\nbecause it was asked to"), "because it was asked to"),
        (OutOfMemoryError(OUT_OF_MEMORY), "Task was killed due to the node running low on memory."),
        (ActorUnschedulableError("its node is gone"), "The actor is not schedulable: its node is gone"),
    ],
)
async def test_whatever_ends_an_actor_that_starts_is_the_machines_failure(error: RayError, told: str):
    """Of an actor that was killed for memory Ray says so with an error that is no RayActorError."""

    async def start() -> None:
        raise error

    with pytest.raises(InfrastructureError) as caught:
        await started([start()], "the ranks to join", 5.0)
    assert str(caught.value) == f"while waiting for the ranks to join: the process died: {told}"
    assert not isinstance(caught.value, WaitTimeoutError)


def test_an_address_where_nobody_listens_is_refused_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(UserError, match=rf"cluster\.address=127\.0\.0\.1:{port}: nobody answers there \(.*refused"):
        join(f"127.0.0.1:{port}", {})
