"""Checks 13 to 16: each known fault is found by the check named for it, and a good model passes."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad as renamed

from aal_bench.audit.bank import Bank
from aal_bench.audit.checks import forward
from aal_bench.audit.labels import differ
from aal_bench.audit.outcome import Outcome
from aal_bench.audit.table import QUICK
from aal_bench.audit.watching import gradients_computed
from tests.audit.conftest import MakeSubject
from tests.audit.models import (
    Around,
    BatchStatistics,
    Kept,
    LabelDependent,
    Optimising,
    Saturated,
    Softmax,
    Stochastic,
    linear_task,
    some_digits,
    trained,
)

CHECKS = (
    forward.deterministic,
    forward.logits_not_probabilities,
    forward.no_test_time_optimisation,
    forward.no_label_at_test,
)
Ask = Callable[[Any, nn.Module], Outcome]


@pytest.fixture
def ask(subject: MakeSubject) -> Ask:
    """Ask one check about a network on 60 digits."""

    def asked(check: Any, model: nn.Module) -> Outcome:
        torch.manual_seed(0)
        return check(Bank(subject(model, *some_digits(60)), QUICK))

    return asked


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_trained_network_a_saturated_one_and_a_linear_one_pass(
    check: Any, ask: Ask, subject: MakeSubject
) -> None:
    assert ask(check, trained()).verdict == "pass"
    assert ask(check, Saturated(base=trained())).verdict == "pass"
    assert check(Bank(subject(*linear_task()), QUICK)).verdict == "pass"


# ---- 13 ------------------------------------------------------------------------------------------


def test_a_stochastic_layer_fails_13_which_names_eot(ask: Ask) -> None:
    found = ask(forward.deterministic, Stochastic(base=trained()))
    assert found.verdict == "fail"
    assert "EOT" in found.sentence


def test_noise_that_changes_no_prediction_fails_13_by_the_distance_of_normalised_logits(
    ask: Ask,
) -> None:
    class Faint(Around):
        def forward(self, x: Tensor) -> Tensor:
            z = self.base(x)
            return z + 1e-3 * z.norm(dim=1, keepdim=True) * torch.randn_like(z)

    found = ask(forward.deterministic, Faint(base=trained()))
    assert found.verdict == "fail"
    assert 1e-4 < found.measured["passes"] < 2e-2


def test_batch_statistics_fail_13(ask: Ask) -> None:
    found = ask(forward.deterministic, BatchStatistics(base=trained()))
    assert found.verdict == "fail"
    assert "other images of the batch" in found.sentence
    assert found.measured["passes"] == 0


def test_a_model_that_cannot_answer_one_image_fails_13_and_the_sentence_says_why(ask: Ask) -> None:
    class Pairs(Around):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) == 1:
                raise ValueError("needs company")
            return self.base(x)

    found = ask(forward.deterministic, Pairs(base=trained()))
    assert found.verdict == "fail"
    assert "batches of 1: ValueError: needs company" in found.sentence


def test_logits_that_are_not_finite_fail_13(ask: Ask) -> None:
    class Broken(Around):
        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) / torch.zeros(())

    assert ask(forward.deterministic, Broken(base=trained())).verdict == "fail"


def test_a_tie_within_rounding_is_no_other_prediction() -> None:
    one = torch.tensor([[1.0, 1.0 + 1e-7, 0.0], [1.0, 0.5, 0.0]])
    other = torch.tensor([[1.0 + 1e-7, 1.0, 0.0], [0.5, 1.0, 0.0]])
    assert differ(one, other).tolist() == [False, True]


# ---- 14 ------------------------------------------------------------------------------------------


def test_probabilities_fail_14(ask: Ask) -> None:
    assert ask(forward.logits_not_probabilities, Softmax(base=trained())).verdict == "fail"


def test_log_probabilities_and_sigmoids_are_no_distribution(ask: Ask) -> None:
    for last in (nn.LogSoftmax(1), nn.Sigmoid()):
        model = nn.Sequential(trained(), last)
        assert ask(forward.logits_not_probabilities, model).verdict == "pass"


# ---- 15 ------------------------------------------------------------------------------------------


def test_an_optimisation_loop_in_forward_fails_15_with_its_six_gradients(ask: Ask) -> None:
    found = ask(forward.no_test_time_optimisation, Optimising(base=trained()))
    assert found.verdict == "fail"
    assert "computes gradients" in found.sentence


def ways() -> dict[str, Callable[[Tensor], Any]]:
    def engine(x: Tensor) -> Any:
        output = (x**2).sum()
        return torch.autograd.Variable._execution_engine.run_backward(
            (output,), (torch.ones(()),), False, False, (x,), allow_unreachable=True
        )

    return {
        "grad": lambda x: torch.autograd.grad((x**2).sum(), x),
        "a grad imported by name": lambda x: renamed((x**2).sum(), x),
        "backward": lambda x: torch.autograd.backward((x**2).sum()),
        "Tensor.backward": lambda x: (x**2).sum().backward(),
        "torch.func": lambda x: torch.func.grad(lambda z: (z**2).sum())(x),
        "the engine itself": engine,
    }


@pytest.mark.parametrize("way", ways())
def test_every_way_to_a_gradient_is_seen_and_the_profiler_comes_back(way: str) -> None:
    def profiler(*_: Any) -> None:
        return None

    before = sys.getprofile()
    sys.setprofile(profiler)
    try:
        with gradients_computed() as seen:
            ways()[way](torch.ones(3, requires_grad=True))
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(before)
    assert seen


def test_a_forward_and_a_graph_alone_are_no_gradient() -> None:
    with gradients_computed() as seen:
        (torch.ones(3, requires_grad=True) ** 2).sum()
    assert seen == []


def test_a_part_that_enables_gradients_for_itself_fails_15(ask: Ask) -> None:
    class Graph(Around):
        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                return self.base(x)

    found = ask(forward.no_test_time_optimisation, Graph(base=trained()))
    assert found.verdict == "fail"
    assert "base" in found.sentence


# ---- 16 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [LabelDependent, Kept])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_model_that_uses_labels_fails_16_wherever_it_gets_them(
    fault: type[Around], wrapped: bool, ask: Ask
) -> None:
    model = fault(base=trained())
    found = ask(forward.no_label_at_test, nn.Sequential(model) if wrapped else model)
    assert found.verdict == "fail"
    assert found.measured["true labels"] > found.measured["no labels"]


def test_a_second_argument_of_any_name_is_tried(ask: Ask) -> None:
    class Disguised(Around):
        def forward(self, x: Tensor, hint: Tensor | None = None) -> Tensor:
            z = self.base(x)
            return z if hint is None else z.scatter(1, hint[:, None], 100.0)

    assert ask(forward.no_label_at_test, Disguised(base=trained())).verdict == "fail"


def test_a_setting_is_given_no_labels(ask: Ask) -> None:
    class Tempered(Around):
        def forward(self, x: Tensor, temperature: float = 1.0, hard: bool = False) -> Tensor:
            return self.base(x) * (1 - 2 * hard) / temperature

    found = ask(forward.no_label_at_test, Tempered(base=trained()))
    assert found.verdict == "pass"
    assert found.measured["tried"] == 0


@pytest.mark.parametrize("count", [1, 10])
def test_as_many_labels_as_classes_are_not_taken_for_weights_of_classes(
    count: int, subject: MakeSubject
) -> None:
    class Weighted(Around):
        def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
            z = self.base(x)
            return z if bias is None else z + 10 * bias

    made = subject(Weighted(base=trained()), *some_digits(count), classes=10)
    assert forward.no_label_at_test(Bank(made, QUICK)).verdict == "pass"
    # One that means labels is found out all the same.
    made = subject(LabelDependent(base=trained()), *some_digits(count), classes=10)
    assert forward.no_label_at_test(Bank(made, QUICK)).verdict == "fail"


def test_a_forward_that_requires_labels_fails_16(ask: Ask) -> None:
    class Requires(Around):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.base(x) + y[:, None]

    found = ask(forward.no_label_at_test, Requires(base=trained()))
    assert found.verdict == "fail"
    assert "'y'" in found.sentence


def test_labels_that_evaluation_ignores_or_refuses_pass_16(ask: Ask) -> None:
    class Ignores(Around):
        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            z = self.base(x)
            return z + y[:, None] if self.training and y is not None else z

    class Refuses(Around):
        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            if y is not None:
                raise RuntimeError("labels are for training")
            return self.base(x)

    for model in (Ignores(base=trained()), Refuses(base=trained())):
        assert ask(forward.no_label_at_test, model).verdict == "pass"


def test_answers_kept_in_the_order_of_the_images_fail_16(ask: Ask) -> None:
    class Remembers(Around):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.one_hot(some_digits(60)[1][: len(x)], 10) + 0 * self.base(x)

    found = ask(forward.no_label_at_test, Remembers(base=trained()))
    assert found.verdict == "fail"
    assert "place" in found.sentence


def test_a_module_that_stays_in_training_mode_fails_16(ask: Ask) -> None:
    class Stubborn(nn.Dropout):
        def train(self, mode: bool = True) -> nn.Module:
            return super().train(True)

    found = ask(forward.no_label_at_test, nn.Sequential(trained(), Stubborn(0.0)))
    assert found.verdict == "fail"
    assert "training mode" in found.sentence


def test_a_module_that_forward_puts_into_training_mode_fails_16(ask: Ask) -> None:
    class Switches(Around):
        def forward(self, x: Tensor) -> Tensor:
            self.base.train()
            z = self.base(x)
            self.base.eval()
            return z

    assert ask(forward.no_label_at_test, Switches(base=trained())).verdict == "fail"


def test_asking_leaves_no_hook_and_no_label_behind(ask: Ask) -> None:
    model = Kept(base=trained())
    before = [len(module._forward_pre_hooks) for module in model.modules()]
    ask(forward.no_label_at_test, model)
    assert [len(module._forward_pre_hooks) for module in model.modules()] == before
    assert model.labels is None
