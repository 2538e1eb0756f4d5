"""The ways in which labels could reach a forward pass, each tried with true and with other labels.

Nobody passes labels when a model is evaluated; but a model that would use them may get them by a
default, an attribute or a cache, and then its accuracy is the label's.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_NAME = re.compile(
    r"_*(y|ys|y_true|gt|.*truth|class(es)?|class_ids?)|.*(label|target).*", re.IGNORECASE
)
_SINGLE = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class WayIn(NamedTuple):
    """One way in."""

    name: str
    """For a sentence: ``argument 'y' of the network``."""
    giving: Callable[[Tensor], AbstractContextManager[None]]
    """Labels (B,) -> a context in which a pass of B images has them."""


def ways_in(model: nn.Module) -> Iterator[WayIn]:
    """Arguments and attributes of `model` and its parts that may take the labels of a batch.

    Arguments by their names, and of the network itself the second one whatever its name; never one
    whose default is a number, a flag or a word, which is a setting. Attributes by their names,
    where they are empty: what is full may be a support set's, which a head needs.
    """
    for path, module in model.named_modules():
        where = f"'{path}'" if path else "the network"
        for argument in _arguments(module, outermost=not path):
            yield WayIn(f"argument '{argument}' of {where}", _argument_giver(module, argument))
        for attribute in _attributes(module):
            yield WayIn(f"attribute '{attribute}' of {where}", _attribute_giver(module, attribute))


def _arguments(module: nn.Module, outermost: bool) -> list[str]:
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())[1:]
    except (TypeError, ValueError):  # a forward that is not Python's tells nothing
        return []
    return [
        each.name
        for number, each in enumerate(parameters)
        if each.kind in _SINGLE
        and (each.default is None or each.default is inspect.Parameter.empty)
        and (_NAME.fullmatch(each.name) or (outermost and number == 0))
    ]


def _attributes(module: nn.Module) -> list[str]:
    return [name for name, value in vars(module).items() if value is None and _NAME.fullmatch(name)]


def _argument_giver(
    module: nn.Module, name: str
) -> Callable[[Tensor], AbstractContextManager[None]]:
    signature = inspect.signature(module.forward)

    @contextmanager
    def giving(labels: Tensor) -> Iterator[None]:
        def give(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            bound = signature.bind_partial(*args, **kwargs)
            # What the network itself passes here is its own business.
            bound.arguments.setdefault(name, labels)
            return bound.args, bound.kwargs

        handle = module.register_forward_pre_hook(give, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    return giving


def _attribute_giver(
    module: nn.Module, name: str
) -> Callable[[Tensor], AbstractContextManager[None]]:
    @contextmanager
    def giving(labels: Tensor) -> Iterator[None]:
        before = getattr(module, name)
        setattr(module, name, labels)
        try:
            yield
        finally:
            setattr(module, name, before)

    return giving


def unlike_anything(x: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """`x` (B,3,H,W) and `y` (B,), the first repeated until labels fit nothing but a batch.

    As many labels as there are classes, channels or pixels in a row would pass for weights of
    classes or for a mask, and one for a number; what they change then is no use of labels.
    """
    alike = {1, classes, *x.shape[1:]}
    size = len(y)
    while size in alike:
        size += 1
    rows = torch.arange(size, device=x.device) % max(len(y), 1)
    return (x, y) if size == len(y) else (x[rows], y[rows])


def other_labels(y: Tensor, classes: int) -> Tensor:
    """A wrong label for every image (B,)."""
    return (y + 1) % max(classes, 2)


def differ(one: Tensor, other: Tensor) -> Tensor:
    """Rows (B,) whose predictions differ though `one` (B,K) is no tie within rounding."""
    best = one.topk(min(2, one.shape[1]), 1).values
    firm = best[:, 0] - best[:, -1] > 1e-5 * one.abs().amax(1)
    return (one.argmax(1) != other.argmax(1)) & (firm | ~torch.isfinite(one).all(1))
