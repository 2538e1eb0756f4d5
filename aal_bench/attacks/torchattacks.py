"""torchattacks by name, and the one of its attacks that is refused."""

from __future__ import annotations

from typing import Any

from aal_bench.errors import UserError, did_you_mean


def attack_class(name: str) -> Any:
    """Return ``torchattacks.<name>``.

    Raises:
        UserError: it has no such attack, or it is ``AutoAttack``, whose number means another thing.
    """
    import torchattacks

    if name.lower() == "autoattack":
        raise UserError(
            "torchattacks.AutoAttack runs 10 iterations where AutoAttack runs 100 (since 2022):"
            " its number is not AutoAttack's. Use --protocol standard"
        )
    known = [key for key in vars(torchattacks) if key[0].isupper()]
    if name not in known:
        raise UserError(f"torchattacks has no attack '{name}'.{did_you_mean(name, known)}")
    return getattr(torchattacks, name)
