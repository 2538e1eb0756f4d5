"""eps is an exact fraction in pixel units, and nothing else is taken for one."""

from decimal import Decimal
from fractions import Fraction

import pytest
import torch
from pydantic import ValidationError

from aal_bench.threat import Threat, format_fraction, parse_fraction


@pytest.mark.parametrize(
    ("written", "exact"),
    [
        ("8/255", Fraction(8, 255)),
        (" 8 / 255 ", Fraction(8, 255)),
        ("0.5", Fraction(1, 2)),
        (".25", Fraction(1, 4)),
        (0.031, Fraction(31, 1000)),
        (1, Fraction(1)),
        ("1e-3", Fraction(1, 1000)),
        (Fraction(2, 255), Fraction(2, 255)),
        (0, Fraction(0)),
    ],
)
def test_fractions_are_exact(written, exact):
    assert parse_fraction(written) == exact


@pytest.mark.parametrize(
    "written",
    ["", "eight", "8/0", "-8/255", "nan", "inf", "8/255/2", "0x8", True, None, [8], "1e999999999"],
)
def test_what_is_no_fraction_is_refused(written):
    with pytest.raises(ValueError, match=r"is not a fraction like 8/255|is negative"):
        parse_fraction(written)


@pytest.mark.parametrize("text", ["8/255", "0.5", "0.031", "255/255", "1/3", "0"])
def test_what_is_written_reads_back_as_the_same_budget(text):
    assert parse_fraction(format_fraction(parse_fraction(text))) == Fraction(text)


def test_pixel_budgets_are_written_as_the_field_does():
    assert format_fraction(Fraction(16, 510)) == "8/255"
    assert format_fraction(Fraction(Decimal("0.031"))) == "0.031"


def test_a_budget_beyond_the_pixel_range_is_a_slip_under_linf_only():
    with pytest.raises(ValidationError, match="write 8/255 for 8 grey levels"):
        Threat(eps=8)  # pyright: ignore
    assert Threat(norm="L2", eps=Fraction(3)).radius == 3
    assert Threat(eps=Fraction(1)).radius == 1


def test_distance_and_violation_are_the_norms_of_the_perturbation():
    x = torch.full((2, 3, 2, 2), 0.5)
    x_adv = x.clone()
    x_adv[0, 0, 0, 0] += 0.3
    x_adv[1, :, 0, 0] -= 0.4
    linf, l2 = Threat(eps=Fraction("0.25")), Threat(norm="L2", eps=Fraction("0.25"))
    torch.testing.assert_close(linf.distance(x_adv, x), torch.tensor([0.3, 0.4]).double())
    torch.testing.assert_close(l2.distance(x_adv, x), torch.tensor([0.3, 0.48**0.5]).double())
    assert linf.violation(x_adv, x).norm == pytest.approx(0.15)
    assert linf.violation(x_adv, x).box == 0


def test_leaving_the_box_is_measured_on_both_sides():
    x = torch.zeros(1, 3, 1, 1)
    x_adv = torch.tensor([-0.1, 0.0, 1.2]).reshape(1, 3, 1, 1)
    assert Threat(eps=Fraction(1)).violation(x_adv, x).box == pytest.approx(0.2)
    assert tuple(Threat(eps=Fraction(1)).violation(x[:0], x[:0])) == (0, 0)
