"""Name -> network from the toolkits' own architectures, normalisation as its first layer."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

from torch import Tensor, nn

from aal_bench import registry
from aal_bench.config import Normalisation
from aal_bench.errors import UserError


class ClassSite(NamedTuple):
    """A place for a class gate."""

    path: str
    """Dotted path of the module whose output is gated."""
    channels: int
    """Of that output."""


class Architecture(NamedTuple):
    """A freshly built network and where gates for attention and for classes belong in it."""

    network: nn.Module
    gate_sites: dict[str, str]
    """``post_bn_relu`` and ``post_conv1`` -> dotted path of the module that follows the gate."""
    gate_channels: int
    """Channels of the feature map at those sites."""
    feature_shape: tuple[int, int, int] | None = None
    """(C, h, w) of what ``network.features`` gives for each image, flattened or not, and what
    ``network.classifier`` takes; None: the network has no such two parts."""
    class_sites: tuple[ClassSite, ...] = ()
    """Where class gates belong, in the network's order: the last two blocks or stages."""


class Classifier(nn.Module):
    """[0, 1] pixels (B, 3, H, W) -> logits (B, K): normalisation, then a toolkit's network.

    The gate's sites travel with the network, so that a method's surgery needs no table of its own.
    A few-shot network has `features` besides, and ``forward`` is their ``network.classifier``.

    Args:
        architecture: the network and what is known of it.
        normalisation: mean and std of the layer inside the model.
        name: what messages call the network.
        classes: its logits, as many as a class gate has; None: not known.
    """

    def __init__(
        self,
        architecture: Architecture,
        normalisation: Normalisation,
        name: str = "",
        classes: int | None = None,
    ) -> None:
        super().__init__()
        self.name = name or type(architecture.network).__name__
        self.normalise = _normaliser(normalisation)
        self.network = architecture.network
        self.gate_sites = {
            position: f"network.{path}" for position, path in architecture.gate_sites.items()
        }
        self.gate_channels = architecture.gate_channels
        self.class_sites = tuple(
            site._replace(path=f"network.{site.path}") for site in architecture.class_sites
        )
        self.classes = classes
        self._feature_shape = architecture.feature_shape

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.normalise(x))

    def features(self, x: Tensor) -> Tensor:
        """[0, 1] pixels (B, 3, H, W) -> features (B, D), D the product of `feature_shape`.

        Hooks on the classifier do not see this pass, nor does an autocast or a compilation that
        wraps ``forward``.

        Raises:
            UserError: the network has no features.
        """
        width = prod(self.feature_shape)
        features: Any = self.network.features  # a module or a method
        return features(self.normalise(x)).reshape(len(x), width)

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one image's features, which `features` flattens in this order.

        Raises:
            UserError: the network has no features.
        """
        if self._feature_shape is None:
            raise UserError(
                f"model {self.name} has no features for few-shot episodes:"
                " choose cnn4, resnet12 or wrn28"
            )
        return self._feature_shape


def _normaliser(normalisation: Normalisation) -> nn.Module:
    if normalisation == Normalisation():
        return nn.Identity()
    from aal_bench.toolkits import robustbench_import

    robustbench_import.repair()
    from robustbench.model_zoo.architectures.utils_architectures import ImageNormalizer

    return ImageNormalizer(normalisation.mean, normalisation.std)


def build(name: str, classes: int, size: int, normalisation: Normalisation) -> Classifier:
    """Build a randomly initialised classifier.

    Args:
        name: a row of the registry (``resnet18``, ``wrn-34-10``, ...) or ``module:builder`` /
            ``file.py:builder``, called as ``builder(classes, size)``.
        classes: number of logits.
        size: side of the square input images in pixels.
        normalisation: mean and std of the layer inside the model.

    Raises:
        UserError: unknown name, a builder that fails or builds something else, or an architecture
            that cannot take images of this size.
    """
    if ":" in name:
        return Classifier(_built_by(name, classes, size), normalisation, name, classes)
    found = registry.find("model", name)
    architecture = registry.load(found.row.target)(classes, size, *found.numbers)
    return Classifier(architecture, normalisation, name, classes)


def _built_by(name: str, classes: int, size: int) -> Architecture:
    builder = registry.load(name)
    try:
        built = builder(classes, size)
    except TypeError as error:
        raise UserError(
            f"--model {name}: is called as builder(classes, size), but {error}"
        ) from None
    if isinstance(built, Architecture):
        return built
    if not isinstance(built, nn.Module):
        raise UserError(f"--model {name}: builds a {type(built).__name__}, not a torch.nn.Module")
    return Architecture(built, {}, 0)
