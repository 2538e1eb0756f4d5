"""Run the checks on a subject, one after the other, and gather what they found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from math import isfinite
from typing import TypeVar

import torch

from aal_bench import registry
from aal_bench.adapters.attack_stage import FAILURES, exact_arithmetic
from aal_bench.audit.accounts import Accounts, NoGradient
from aal_bench.audit.bank import Bank
from aal_bench.audit.outcome import Outcome, not_applicable
from aal_bench.audit.reasons import why_not
from aal_bench.audit.record import Cost, Examined, Finding
from aal_bench.audit.subject import Subject
from aal_bench.audit.table import CHECKS, THRESHOLDS, Budget, Check, Thresholds
from aal_bench.errors import RunFailed
from aal_bench.progress import track

Shared = TypeVar("Shared", bound=Accounts)
_HERE = "aal_bench.audit.checks"
CHECKERS: dict[int, str] = {
    1: f"{_HERE}.steps:iterative_beats_one_step",
    2: f"{_HERE}.steps:convergence",
    3: f"{_HERE}.steps:restarts",
    4: f"{_HERE}.steps:finished_optimisation",
    5: f"{_HERE}.radius:monotone_in_eps",
    6: f"{_HERE}.radius:large_eps_chance",
    7: f"{_HERE}.radius:unbounded_attack",
    8: f"{_HERE}.blackbox:black_box_weaker",
    9: f"{_HERE}.blackbox:transfer_weaker",
    10: f"{_HERE}.blackbox:random_noise_weaker",
    11: f"{_HERE}.gradients:gradients_exist",
    12: f"{_HERE}.gradients:autograd_complete",
    13: f"{_HERE}.forward:deterministic",
    14: f"{_HERE}.forward:logits_not_probabilities",
    15: f"{_HERE}.forward:no_test_time_optimisation",
    16: f"{_HERE}.forward:no_label_at_test",
    17: f"{_HERE}.steps:silent_success",
    18: f"{_HERE}.smooth:stable_loss",
    19: f"{_HERE}.smooth:gradient_alignment",
    20: f"{_HERE}.smooth:local_linearity",
    21: f"{_HERE}.leaks:catastrophic_overfitting",
    22: f"{_HERE}.leaks:label_leaking",
    23: f"{_HERE}.ordering:attack_ordering",
    24: f"{_HERE}.claims:plausibility",
    25: f"{_HERE}.gates:mask_honesty",
    26: f"{_HERE}.gates:gate_pinning",
    27: f"{_HERE}.claims:budget",
    28: f"{_HERE}.controls:undefended_control",
    29: f"{_HERE}.controls:known_broken_control",
    30: f"{_HERE}.readout:binary_readout",
    31: f"{_HERE}.claims:per_image_worst_case",
    32: f"{_HERE}.shifts:broader_shifts",
}
"""Check -> the function that judges it on labelled images."""


def examine(
    subject: Subject,
    budget: Budget,
    thresholds: Thresholds = THRESHOLDS,
    checks: Iterable[Check] = CHECKS,
) -> tuple[Examined, Bank]:
    """Run `checks` on `subject`.

    Returns:
        What was found, and the bank with everything that was made on the way, for figures.
    """
    bank = Bank(subject, budget, thresholds)
    found = judged(bank, subject.family, subject.size, budget, CHECKERS, checks)
    return found, bank


def judged(
    bank: Accounts,
    family: str,
    images: int,
    budget: Budget,
    checkers: Mapping[int, str],
    checks: Iterable[Check] = CHECKS,
) -> Examined:
    """What the `checkers` of a family find with `bank`; the others say why they do not apply."""
    began = time.perf_counter()
    wanted = list(checks)
    found: list[Finding] = []
    with track("audit", len(wanted)) as progress, exact_arithmetic():
        for check in wanted:
            if family in check.families:
                outcome = one(bank, check, registry.load(checkers[check.number]))
            else:
                outcome = not_applicable(why_not(family, check.number))
            found.append(Finding.of(check, outcome))
            progress.advance()
    return Examined(
        budget=budget.name,
        images=images,
        checks=found,
        cost=Cost.of(bank.spent, bank.naive(), time.perf_counter() - began),
    )


def one(bank: Shared, check: Check, checker: Callable[[Shared], Outcome]) -> Outcome:
    """One check's outcome; an exception inside it is a failure, never a pass."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with bank.charging(check.number), torch.random.fork_rng(devices=devices):
        torch.manual_seed(bank.seed)
        try:
            return finite(checker(bank))
        except NoGradient as error:
            return Outcome(
                "not decided", f"The model has no gradient to attack with (check 12): {error}."
            )
        except FAILURES as error:
            reason = str(error).partition("\n")[0]
            if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in reason:
                raise RunFailed(
                    f"audit: out of memory in check {check.number}: take --quick, or lower"
                    " evaluation.batch_size"
                ) from error
            return Outcome("fail", f"The check itself raised {type(error).__name__}: {reason}.")


def finite(outcome: Outcome) -> Outcome:
    """`outcome`, failed where a figure behind a pass is NaN or infinite: comparisons hide those."""
    figures = [*outcome.measured.values(), outcome.value]
    odd = [one for one in figures if isinstance(one, float) and not isfinite(one)]
    if not odd or outcome.verdict != "pass":
        return outcome
    return outcome._replace(
        verdict="fail", sentence=f"{outcome.sentence} A figure behind it is not finite."
    )
