"""The threat model: norm, eps as an exact fraction, and the box; projection and its measurement.

eps is kept as a ``Fraction`` because 8/255 = 0.0313725... and 0.031 are different budgets whose
robust accuracies are not comparable. Tensors are duck-typed: this module never imports torch.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, model_validator

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-6
"""Largest excess over eps, or over the box, that float32 rounding explains."""
_NUMBER = re.compile(r"[+-]?(\d+/\d+|(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?)", re.ASCII | re.IGNORECASE)


def parse_fraction(text: object) -> Fraction:
    """Return ``"8/255"``, ``"0.5"`` or a number as an exact fraction >= 0.

    Raises:
        ValueError: `text` is not a finite, non-negative fraction or number.
    """
    written = str(text).replace(" ", "")
    try:
        if not _NUMBER.fullmatch(written):  # Fraction("1e999999999") would never end
            raise ValueError
        value = Fraction(written)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{text!r} is not a fraction like 8/255 or a number like 0.5") from None
    if value < 0:
        raise ValueError(f"{text!r} is negative")
    return value


def format_fraction(value: Fraction) -> str:
    """Write pixel-scale budgets the way the field does: ``k/255`` where exact, else a decimal."""
    pixels = value * 255
    if value and pixels.denominator == 1:
        return f"{pixels.numerator}/255"
    decimal = format(float(value), "g")
    return decimal if Fraction(decimal) == value else str(value)


ExactFraction = Annotated[
    Fraction,
    BeforeValidator(parse_fraction),
    PlainSerializer(format_fraction, return_type=str),
]
"""A pydantic field type: ``"8/255"`` in files, a ``Fraction`` in memory."""


class Violation(NamedTuple):
    """How far adversarials leave the ball and the box, each >= 0, in pixel units."""

    norm: float
    box: float


class Threat(BaseModel):
    """What an attacker may do: |x' - x|_norm <= eps with x' inside [0, 1]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    norm: Literal["Linf", "L2"] = "Linf"
    eps: ExactFraction
    """Budget in [0, 1] pixel units, before any normalisation."""

    @model_validator(mode="after")
    def _in_pixel_units(self) -> Threat:
        if self.norm == "Linf" and self.eps > 1:
            raise ValueError(
                f"eps = {format_fraction(self.eps)} is more than the whole range of a pixel,"
                f" which is [0, 1]: write 8/255 for 8 grey levels"
            )
        return self

    @property
    def radius(self) -> float:
        """The budget as a float."""
        return float(self.eps)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Per-sample norm of the perturbation, shape (B,)."""
        flat = (x_adv.double() - x.double()).flatten(1)
        return flat.abs().amax(1) if self.norm == "Linf" else flat.norm(dim=1)

    def violation(self, x_adv: Tensor, x: Tensor) -> Violation:
        """Measure by how much any of the adversarials leaves the ball or the box."""
        if not len(x):
            return Violation(0.0, 0.0)
        excess = (self.distance(x_adv, x) - self.radius).clamp_min(0).max()
        outside = (-x_adv).clamp_min(0).max().maximum((x_adv - 1).clamp_min(0).max())
        return Violation(float(excess), float(outside))

    def __str__(self) -> str:
        return f"{self.norm} {format_fraction(self.eps)}"
