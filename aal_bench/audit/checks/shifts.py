"""Check 32: changes of the image that no attacker chose. Stated, never judged.

Carlini et al. 2019, arXiv 1902.06705: whoever claims robustness should say to what else it extends.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.functional import InterpolationMode, affine

from aal_bench.audit.bank import Bank
from aal_bench.audit.outcome import Outcome, percent, share

SIGMAS = (0.02, 0.05, 0.1)
"""Standard deviations of Gaussian noise, in pixel units."""
DEGREES = (10, 30)
"""Of rotations, each both ways."""
PIXELS = (2, 4)
"""Of translations, each in four directions."""


def broader_shifts(bank: Bank) -> Outcome:
    """32: accuracy under noise, rotations and translations, the mean over signs and directions."""
    x = bank.x
    measured = {"clean": share(bank.correct())}
    for sigma in SIGMAS:
        noisy = (x + sigma * torch.randn_like(x)).clamp(0, 1)
        measured[f"noise-{sigma:g}"] = _accuracy(bank, noisy)
    for degrees in DEGREES:
        both = [_moved(x, angle=sign * degrees) for sign in (1, -1)]
        measured[f"rotation-{degrees}"] = _accuracy(bank, *both)
    for pixels in PIXELS:
        ways = ((pixels, 0), (-pixels, 0), (0, pixels), (0, -pixels))
        measured[f"translation-{pixels}"] = _accuracy(bank, *(_moved(x, by=way) for way in ways))
    least = min(measured, key=lambda name: measured[name])
    return Outcome(
        "pass",
        f"Of {percent(measured['clean'])} without a change, Gaussian noise of {SIGMAS[-1]:g} leaves"
        f" {percent(measured[f'noise-{SIGMAS[-1]:g}'])}, rotations by {DEGREES[-1]} degrees"
        f" {percent(measured[f'rotation-{DEGREES[-1]}'])} and translations by {PIXELS[-1]} pixels"
        f" {percent(measured[f'translation-{PIXELS[-1]}'])}.",
        value=measured[least],
        measured=measured,
    )


def _moved(x: Tensor, angle: float = 0.0, by: tuple[int, int] = (0, 0)) -> Tensor:
    """`x` turned about its centre and shifted; what comes in from outside is black."""
    return affine(
        x,
        angle=angle,
        translate=list(by),
        scale=1.0,
        shear=[0.0],
        interpolation=InterpolationMode.BILINEAR if angle else InterpolationMode.NEAREST,
    ).clamp(0, 1)


def _accuracy(bank: Bank, *images: Tensor) -> float:
    right = [(bank.predictions(each) == bank.y).double() for each in images]
    return round(float(torch.stack(right).mean()), 6)
