"""What the commands of `atlas-distill` share: common options, and a configuration out of what was given."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from atlas_edge.errors import UsageError

if TYPE_CHECKING:
    from atlas_edge.distill.training.config import TrainConfig

Many = Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=True)]
AugmentationName = Literal["none", "geometry", "weak", "strong"]


def train_config(options: dict[str, Any]) -> "TrainConfig":
    """The configuration of some options.

    Raises:
        UsageError: One is out of its range; it is named as it is on the command line.
    """
    from pydantic import ValidationError

    from atlas_edge.distill.training.config import TrainConfig

    try:
        return TrainConfig(**options)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        found = first["input"] if first["input"] != () else "nothing"
        raise UsageError(f"--{option} is {found}: {first['msg']}", hint="see atlas-distill --help") from error
