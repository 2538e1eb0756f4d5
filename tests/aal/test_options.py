import re
import subprocess
import sys

import pytest

from aal_bench.aal.options import Gate, Selective
from aal_bench.config import parse
from aal_bench.errors import UserError


def test_the_defaults_are_the_default_reading():
    assert Selective().model_dump() == {
        "sign": "ascent",
        "kernel": "m2",
        "gamma": "elementwise",
        "ratio": "signed_clip1",
        "pgd_refresh": False,
        "reduction": "sum",
        "pooling": "sum",
        "trigger": "top_frac",
        "zeta": 0.1,
        "xi1": "follow_lr",
        "xi2": 0.1,
        "grad_norm": "none",
        "detach_mask": True,
        "second_att": "recompute",
        "clamp_mask": (0.0, 1.0),
        "fgsm_step": "eps",
        "start": "inherit",
        "clean_weight": 0.0,
        "craft_bn": "inherit",
        "gate": {
            "position": "post_bn_relu",
            "channel_gate": False,
            "kernel_size": 7,
            "bn_momentum": 0.01,
            "bn_weight_init": 0,
        },
        "control": "none",
    }


def test_every_ambiguity_of_the_register_is_named_by_a_switch():
    fields = {**Selective.model_fields, **Gate.model_fields}
    told = " ".join(field.description or "" for field in fields.values())
    numbers = {int(number) for number in re.findall(r"A(\d+)", told)}
    assert "A2-A4" in told
    assert numbers | {3} == set(range(1, 20))  # A20 is the task's


def test_xi1_follows_the_rate_or_is_a_constant():
    assert Selective().descent_step(0.05) == 0.05
    assert Selective(xi1=0.2).descent_step(0.05) == 0.2


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"kernl": "m"}, "Did you mean kernel"),
        ({"kernel": "m3"}, "kernel"),
        ({"clamp_mask": [0, 1.5]}, "clamp_mask"),
        ({"xi1": -1}, "xi1"),
        ({"gate": {"kernel_size": 4}}, "odd"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(options, named):
    with pytest.raises(UserError, match=named) as raised:
        parse(Selective, options, "--set")
    assert "\n" not in str(raised.value)


def test_options_need_no_torch():
    code = "import sys, aal_bench.aal.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
