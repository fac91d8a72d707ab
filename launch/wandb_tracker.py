"""Weights & Biases: online with a key in the environment, offline without; never the end of a run."""

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from launch.files import plain
from launch.redaction import redact
from launch.run_folder import RunFolder
from lwz_ray.config import Config
from lwz_ray.records import Sample

INIT_TIMEOUT_S = 60.0
FINISH_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0


def wandb_mode(environ: Mapping[str, str]) -> str:
    """Return `online` where WANDB_API_KEY is set, else `offline`; WANDB_MODE may only ask for less."""
    asked = environ.get("WANDB_MODE", "")
    if asked in ("offline", "disabled"):
        return asked
    return "online" if environ.get("WANDB_API_KEY") else "offline"


class WandbTracker:
    """Send step metrics to wandb; on any failure of wandb warn, keep the warning, and go on without it."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        environ: Mapping[str, str] | None = None,
        init_timeout_s: float = INIT_TIMEOUT_S,
    ) -> None:
        self._folder = folder
        self._run: Any = None
        environ = os.environ if environ is None else environ
        try:
            self._run = _start(config, folder, environ, init_timeout_s)
        except Exception as error:  # wandb's start-up raises many kinds, and none of them may end a run
            self._warn(f"could not start, the run goes on without it ({type(error).__name__}: {error})")

    @property
    def running(self) -> bool:
        """Say whether wandb takes metrics."""
        return self._run is not None

    def log_step(self, metrics: Mapping[str, Any]) -> None:
        """Log the numbers of one step."""
        if self._run is None:
            return
        numbers = {k: v for k, v in plain(metrics).items() if isinstance(v, (bool, int, float))}
        try:
            self._run.log(numbers)
        except Exception as error:
            self._run = None
            self._warn(f"stopped taking metrics ({type(error).__name__}: {error})")

    def log_samples(self, samples: Sequence[Sample], advantages: Sequence[float], step: int, split: str) -> None:
        """Send nothing: texts stay in the run folder, where their owner decides who reads them."""

    def close(self) -> None:
        """Finish the wandb run, waiting `FINISH_TIMEOUT_S` for its uploads, then `STOP_TIMEOUT_S` for its file."""
        if self._run is None:
            return
        run, self._run = self._run, None
        try:
            run.finish()
            _stop_service()
        except Exception as error:
            self._warn(f"did not finish ({type(error).__name__}: {error}); `wandb sync` can send what is on disk")

    def _warn(self, message: str) -> None:
        self._folder.warn("wandb", " ".join(message.split()))


def _start(config: Config, folder: RunFolder, environ: Mapping[str, str], init_timeout_s: float) -> Any:
    """Start a wandb run that records metrics and config, and nothing about the machine, the code or the command."""
    import wandb

    settings = wandb.Settings(
        silent=True,
        console="off",
        init_timeout=init_timeout_s,
        finish_timeout=FINISH_TIMEOUT_S,
        save_code=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        # wandb-metadata.json would hold the command line, host name, user and e-mail.
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
    run = wandb.init(
        project=config.tracking.project,
        name=config.run.name,
        group=config.run.name,
        dir=str(folder.path),
        config=redact(config.model_dump(mode="json"), environ),
        mode=wandb_mode(environ),  # pyright: ignore[reportArgumentType]
        settings=settings,
    )
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _stop_service() -> None:
    """Wait until wandb's service process has written everything and ended: `finish` alone returns before it has.

    Raises:
        TimeoutError: It had not ended after `STOP_TIMEOUT_S`.
    """
    import wandb

    stopping = threading.Thread(target=wandb.teardown, name="wandb-teardown", daemon=True)
    stopping.start()
    stopping.join(STOP_TIMEOUT_S)
    if stopping.is_alive():
        raise TimeoutError(f"its service process had not ended after {STOP_TIMEOUT_S:.0f} s")
