"""Classifiers whose trunk was made for something else: its maps, made features, before a fully connected head."""

from torch import Tensor, nn


class TrunkClassifier(nn.Module):
    """Images (B, C, H, W) in [-1, 1] to logits (B, K) of their classes."""

    def __init__(self, name: str, layers: nn.Sequential, pool: nn.Module, head: nn.Linear) -> None:
        """Around layers that are there already.

        Args:
            name: what the network that the layers are of calls them, so that its weights fit.
            layers: images to maps (B, C', H', W'); no module of them is left out of `stages`.
            pool: maps to features (B, feature_dim); it has no weights.
            head: features to logits (B, K).
        """
        super().__init__()
        self.name = name
        self.add_module(name, layers)
        self.pool = pool
        self.feature_dim = head.in_features
        self.head = head

    @property
    def map_layer(self) -> nn.Module:
        """The layers whose maps the features are made of."""
        return self.get_submodule(self.name)

    @property
    def stages(self) -> tuple[tuple[nn.Module, ...], ...]:
        """The network from the image to the logits, in parts that may be frozen one by one; the head is last."""
        layers = list(self.map_layer.children())
        weighted = [any(True for _ in layer.parameters()) for layer in layers]
        starts = [i for i, has in enumerate(weighted) if has and not isinstance(layers[i], nn.BatchNorm2d)]
        parts = (tuple(layers[a:b]) for a, b in zip(starts, [*starts[1:], len(layers)], strict=True))
        return (*parts, (self.head,))

    def features(self, images: Tensor) -> Tensor:
        """What the head sees of images (B, C, H, W) in [-1, 1]: (B, feature_dim)."""
        features: Tensor = self.pool(self.map_layer(images))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K), unbounded."""
        logits: Tensor = self.head(self.features(images))
        return logits
