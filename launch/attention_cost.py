"""What one query-key pair costs beside one token, from the model's shape: packed rows are balanced by it."""

import json
from pathlib import Path

from launch.shapes import ModelShape, shape_of
from lwz_ray.config import Config
from lwz_ray.errors import UserError


def attention_cost(config: Config) -> float:
    """Return `learners.attention_cost`, or where that is null the ratio of floating-point operations.

    In units of one token's work outside attention. Raises UserError where the model's sizes cannot be read.
    """
    given = config.learners.attention_cost
    return _of_model(config.model.path) if given is None else given


def attention_cost_of(shape: ModelShape) -> float:
    """Return operations of one causal query-key pair over those of one token, in all layers.

    A pair takes 2 multiplications and 2 additions for each number of a query (its product with the key, its share of
    the value), a token 2 operations for each weight it meets: the layers' and the output matrix's. The backward pass
    doubles both, so the ratio stays.
    """
    pair = 4 * shape.num_layers * shape.query_width
    token = 2 * (shape.num_layers * shape.layer_parameters + shape.vocab_size * shape.hidden)
    return pair / token


def _of_model(path: str) -> float:
    """Return the exact ratio of a model whose parameters can be counted; of another 1 / (6 hidden_size).

    The latter is that of a layer of 12 hidden_size^2 weights, GPT's, without the output matrix.
    """
    try:
        return attention_cost_of(shape_of("model.path", path))
    except UserError:
        file = Path(path) / "config.json"
        hidden = json.loads(file.read_text(encoding="utf-8")).get("hidden_size") if file.is_file() else None
        if not isinstance(hidden, int):
            raise UserError(
                f"model.path={path!r}: its config.json says no hidden_size, from which learners.attention_cost=null is "
                "computed; give learners.attention_cost a number (0 balances by tokens alone)"
            ) from None
        return 1.0 / (6 * hidden)
