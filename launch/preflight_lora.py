"""What `lora` can be refused for before a model is loaded: the names of its targets."""

import re
from pathlib import Path

from launch.preflight import model_folder
from lwz_ray.config import Config
from lwz_ray.lora import check_targets
from lwz_ray.model_folder import weight_shapes

_MATRIX = re.compile(r"(.*\.\d+\..*)\.weight")


def check_lora_targets(config: Config) -> None:
    """Raise UserError for a target that is no matrix of a decoder layer; only headers of safetensors are read.

    Of a hub model the files may not be here yet: the learner checks its targets when it has loaded it.
    """
    path = config.model.path
    folder = model_folder("model.path", path, config.dry_run) if Path(path).is_absolute() else None
    if folder is None:
        return
    matrices = [m[1] for n, s in weight_shapes(folder).items() if len(s) == 2 and (m := _MATRIX.fullmatch(n))]
    check_targets(config.lora.target_modules, matrices, f"model.path={path!r}")
