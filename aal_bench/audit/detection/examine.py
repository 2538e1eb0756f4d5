"""Run the checks that carry over to detectors."""

from __future__ import annotations

from aal_bench.audit.detection.bank import DetectorBank
from aal_bench.audit.detection.subject import DetectionSubject
from aal_bench.audit.examine import judged
from aal_bench.audit.record import Examined
from aal_bench.audit.table import THRESHOLDS, Budget, Thresholds

_HERE = "aal_bench.audit.detection"
CHECKERS: dict[int, str] = {
    1: f"{_HERE}.steps:iterative_beats_one_step",
    2: f"{_HERE}.steps:convergence",
    5: f"{_HERE}.radius:monotone_in_eps",
    7: f"{_HERE}.radius:unbounded_attack",
    10: f"{_HERE}.radius:random_noise_weaker",
    11: f"{_HERE}.gradients:gradients_exist",
    12: f"{_HERE}.gradients:autograd_complete",
    13: f"{_HERE}.forward:deterministic",
    16: f"{_HERE}.forward:no_label_at_test",
    17: f"{_HERE}.steps:silent_success",
    25: f"{_HERE}.gates:mask_honesty",
    27: f"{_HERE}.claims:budget",
    28: f"{_HERE}.claims:undefended_control",
    31: f"{_HERE}.claims:per_image_worst_case",
}
"""Check -> the function that judges it on the losses of a detector's images."""


def examine_detector(
    subject: DetectionSubject, budget: Budget, thresholds: Thresholds = THRESHOLDS
) -> Examined:
    """What the checks find about a detector."""
    bank = DetectorBank(subject, budget, thresholds)
    return judged(bank, "detection", subject.size, budget, CHECKERS)
