"""The networks that a run starts from."""

from typing import Any

from torch import nn

from genray.config import Config
from genray.data.images import ImageSet
from genray.errors import ConfigError
from genray.objectives import Stateful


def build_networks(config: Config, images: ImageSet) -> dict[str, nn.Module]:
    """Fresh networks of the run; those that normalise images have measured theirs.

    Initial weights come from torch's global generator, which the caller seeds.

    Raises:
        ConfigError: the objective weighs another number of classes than the images have.
    """
    weights = getattr(config.objective, "class_weights", ())
    if weights and len(weights) != len(images.classes):
        raise ConfigError(
            f"objective.class_weights has {len(weights)} numbers, and the images have {len(images.classes)} classes "
            f"({', '.join(images.classes[:10])}); give one for each"
        )
    built: dict[str, nn.Module] = config.model.build(config.data.image_shape, len(images.classes))
    if isinstance(config.objective, Stateful):
        built |= config.objective.state()
    for module in built.values():
        standardise: Any = getattr(module, "standardise", None)
        if standardise is not None:
            standardise.measure(images.images)
    return built
