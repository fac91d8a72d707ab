"""The base of every config node, and the number types that nodes share."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Language = Literal["en", "zh"]


class Node(BaseModel):
    """A frozen config node that refuses unknown keys and silent type changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


def check_replicas(room: str, replicas: int, smallest: int, largest: int | None) -> None:
    """Raise ValueError unless smallest <= replicas <= largest."""
    if replicas < smallest or (largest is not None and replicas > largest):
        raise ValueError(
            f"{room}.replicas={replicas} lies outside of {room}.min_replicas={smallest} and "
            f"{room}.max_replicas={'null' if largest is None else largest}"
        )


def check_resources(room: str, resources: dict[str, float]) -> None:
    """Raise ValueError for a name that Ray has a meaning for; CPUs and GPUs have keys of their own."""
    for name in resources:
        if name in ("CPU", "GPU", "memory", "object_store_memory") or not name:
            raise ValueError(
                f"{room}.resources names {name!r}: custom resources only, the ones that `ray start --resources` gives "
                f"a node; CPUs and GPUs are {room}.num_cpus and {room}.num_gpus"
            )
