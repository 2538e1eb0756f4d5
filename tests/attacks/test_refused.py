"""torchattacks by name, and why one of its attacks is refused."""

from __future__ import annotations

import pytest
import torchattacks

from aal_bench.attacks.torchattacks import attack_class
from aal_bench.errors import UserError


@pytest.mark.parametrize("name", ["AutoAttack", "autoattack"])
def test_its_autoattack_is_refused_and_the_right_one_is_named(name):
    with pytest.raises(UserError, match=r"10 iterations .* --protocol standard") as refused:
        attack_class(name)
    assert "\n" not in str(refused.value)


def test_what_it_calls_autoattack_still_runs_a_tenth(gauntlet):
    """When this fails, upstream has mended it and the refusal can be lifted."""
    suite = torchattacks.AutoAttack(gauntlet(), norm="Linf", eps=8 / 255, version="standard")
    steps = {type(part).__name__: part.steps for part in suite._autoattack.attacks[:3]}
    assert steps == {"APGD": 10, "APGDT": 10, "FAB": 10}


def test_others_are_found_and_typos_answered():
    assert attack_class("PGD") is torchattacks.PGD
    with pytest.raises(UserError, match=r"no attack 'PGDD'\. Did you mean .*PGD"):
        attack_class("PGDD")
