"""Where the ranks of a group find one another: a key-value store that is open before its address is told."""

from datetime import timedelta
from urllib.parse import urlsplit

import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage] - documented, not in its __all__

from learners.settings import LearnerSettings


class Rendezvous:
    """A store on this host, at a port that the system gave and that stays taken as long as this object lives.

    An address that is only probed and told may belong to somebody else by the time a rank listens on it.
    """

    def __init__(self, host: str, timeout_s: float) -> None:
        """Listen on a free port of host, an address of this machine."""
        self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))
        self.address = f"tcp://{host}:{self._store.port}"


def join(settings: LearnerSettings, rank: int, world_size: int, address: str) -> None:
    """Make this process a rank of the group that meets at address (`tcp://host:port` of a `Rendezvous`)."""
    at = urlsplit(address)
    if at.hostname is None or at.port is None:
        raise ValueError(f"rendezvous {address!r}: not of the form tcp://host:port")
    timeout = timedelta(seconds=settings.timeout_s)
    store = TCPStore(at.hostname, at.port, is_master=False, timeout=timeout)
    # Checkpoints and offloaded shards are CPU tensors, so a CUDA group carries gloo beside NCCL.
    backend = "cpu:gloo,cuda:nccl" if settings.device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
