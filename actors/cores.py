"""Which cores an engine computes on (CPU only)."""

import os
from collections.abc import Sequence


def pin_threads(threads: int, replica_index: int, tensor_parallel_size: int) -> None:
    """Give a replica its own cores, so that replicas and learners do not spin on the same ones.

    vLLM reads them when it is imported. What the environment says already stays.
    """
    cores = sorted(os.sched_getaffinity(0))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", cores_of(cores, threads, replica_index, tensor_parallel_size))


def cores_of(cores: Sequence[int], threads: int, replica_index: int, tensor_parallel_size: int) -> str:
    """Return the cores of each of a replica's workers as vLLM reads them; replicas beyond the host's cores share.

    Example: of cores 0 to 3, replica 1 with 2 threads gets "2,3", and replica 5 too; with 1 thread and two workers
    replica 1 gets "2|3".
    """
    workers = []
    for worker in range(tensor_parallel_size):
        first = (replica_index * tensor_parallel_size + worker) * threads
        chosen = {cores[(first + i) % len(cores)] for i in range(min(threads, len(cores)))}
        workers.append(",".join(map(str, sorted(chosen))))
    return "|".join(workers)
