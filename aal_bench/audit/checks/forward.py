"""Checks 13 to 16: is the forward pass a function of its one image, from pixels to logits?"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn
from torch.nn import functional

from aal_bench.adapters.attack_stage import FAILURES
from aal_bench.audit.bank import Bank
from aal_bench.audit.branch import beginning
from aal_bench.audit.labels import differ, other_labels, unlike_anything, ways_in
from aal_bench.audit.outcome import Outcome
from aal_bench.audit.watching import gradients_computed, graphs_built, trained_parts

IMAGES = 50
"""Images that the forward pass is tried on."""
SIZES = (1, 7)
"""Batches into which they are cut, beside all at once."""
PASSES = 5


def deterministic(bank: Bank) -> Outcome:
    """13: five passes agree, and an image's neighbours in a batch do not change its answer."""
    limits = bank.thresholds
    spread, mixed, unlike, changed, n = 0.0, 0.0, 0, 0, 0
    attacked = bank.clean()
    for part in beginning(bank.subject.parts, IMAGES):
        model, x, size = part.model, part.x, len(part.y)
        # As the attacks' own batches answered the same images.
        others = [attacked[n : n + size].to(x.device)]
        n += size
        with bank.counting(model), torch.no_grad():
            whole = model(x)
            for _ in range(PASSES - 1):
                again = model(x)
                unlike += int(differ(whole, again).sum())
                spread = max(spread, _distance(whole, again))
            order = torch.randperm(size, device=x.device)
            others.append(model(x[order])[order.argsort()])
            for cut in SIZES:
                try:
                    others.append(torch.cat([model(each) for each in x.split(cut)]))
                except FAILURES as error:
                    reason = str(error).partition("\n")[0]
                    return Outcome(
                        "fail",
                        f"The model answers {size} images at once and fails on batches of {cut}:"
                        f" {type(error).__name__}: {reason}.",
                        value=f"batches of {cut} fail",
                    )
        for other in others:
            changed += int(differ(whole, other).sum())
            mixed = max(mixed, _distance(whole, other))
    measured = {"passes": spread, "batches": mixed, "changed": changed, "unlike": unlike}
    if unlike or spread > limits.logits_distance:
        return Outcome(
            "fail",
            f"The same {n} images get other answers in another pass ({unlike} other predictions,"
            f" normalised logits up to {spread:.1e} apart): the model is random, and only attacks"
            " that average over its randomness (EOT) say something of it.",
            value=round(spread, 8),
            threshold=limits.logits_distance,
            measured=measured,
        )
    if changed or mixed > limits.batch_distance:
        return Outcome(
            "fail",
            f"The answer depends on the other images of the batch: in batches of 1, of 7, of"
            f" all and in another order {changed} predictions change and normalised logits move by"
            f" up to {mixed:.1e}.",
            value=round(mixed, 8),
            threshold=limits.batch_distance,
            measured=measured,
        )
    return Outcome(
        "pass",
        f"Five passes over {n} images agree, whatever the batch they come in (normalised logits"
        f" within {max(spread, mixed):.1e}).",
        value=round(spread, 8),
        threshold=limits.logits_distance,
        measured=measured,
    )


def logits_not_probabilities(bank: Bank) -> Outcome:
    """14: the outputs are not a probability distribution."""
    tolerance, logits = bank.thresholds.probability_tolerance, bank.clean().double()
    low, high = float(logits.min()), float(logits.max())
    off = float((logits.sum(1) - 1).abs().max())
    inside = low >= 0 and high <= 1 + tolerance
    probabilities = inside and off <= tolerance
    return Outcome(
        "fail" if probabilities else "pass",
        "Every row of outputs lies in [0, 1] and sums to 1: these are probabilities, whose"
        " saturation hides the gradient from attacks that expect logits."
        if probabilities
        else f"The outputs lie between {low:.3g} and {high:.3g} and no softmax made them: a row's"
        f" sum is up to {off:.3g} away from 1.",
        value=round(off, 6),
        threshold=tolerance,
        measured={"smallest": low, "largest": high},
    )


def no_test_time_optimisation(bank: Bank) -> Outcome:
    """15: a forward pass runs no backward pass and enables no gradients."""
    computed: list[str] = []
    built: list[str] = []
    for part in beginning(bank.subject.parts, 8):
        for enabled in (False, True):
            with (
                bank.counting(part.model),
                graphs_built(part.model) as graphs,
                gradients_computed() as calls,
            ):
                try:
                    with torch.set_grad_enabled(enabled):
                        part.model(part.x.clone())
                except FAILURES:
                    if not calls:  # another fault, which is not this check's
                        raise
            computed += calls
            built += [] if enabled else graphs
    if computed:
        told = (
            f"The forward pass itself computes gradients ({len(computed)} times in 2 passes): what"
            " is optimised at test time needs attacks that go through the optimisation."
        )
    elif built:
        told = f"The forward pass enables gradients of its own accord, in {built[0]}."
    else:
        told = "The forward pass computes no gradients."
    return Outcome(
        "fail" if computed or built else "pass", told, value=len(computed) + len(built), threshold=0
    )


def no_label_at_test(bank: Bank) -> Outcome:
    """16: no label, no place in the batch and no training mode decides a prediction."""
    tried: list[str] = []
    for part in beginning(bank.subject.parts, IMAGES):
        with bank.counting(part.model):
            x, y = unlike_anything(part.x, part.y, bank.subject.classes)
            found = _label_use(part.model.eval(), x, y, bank.subject.classes, tried)
        if found is not None:
            return found
    bank.subject.network.eval()
    stuck = [
        name or "the network" for name, m in bank.subject.network.named_modules() if m.training
    ]
    if stuck:
        return _in_training(stuck)
    ways = (
        f"{len(set(tried))} ways to give it labels change nothing"
        if tried
        else "it takes no labels"
    )
    return Outcome(
        "pass",
        f"Predictions depend on the image alone: {ways}, the order of a batch does not matter, and"
        " every module is in evaluation mode.",
        value=0,
        threshold=0,
        measured={"tried": len(set(tried))},
    )


def _label_use(
    model: nn.Module, x: Tensor, y: Tensor, classes: int, tried: list[str]
) -> Outcome | None:
    required = _required(model)
    if required:
        return Outcome(
            "fail",
            f"The forward pass cannot do without '{required}' beside the images: at test time there"
            " is nothing to give.",
            value=required,
        )
    with trained_parts(model) as training:
        absent = _answer(model, x)
    if training:
        return _in_training(training)
    for way in ways_in(model):
        answers = []
        try:
            for labels in (y, other_labels(y, classes)):
                with way.giving(labels):
                    answers.append(_answer(model, x))
        except FAILURES:  # it takes no labels there, or refuses them
            continue
        tried.append(way.name)
        true, other = answers
        changed = int((differ(true, other) | differ(absent, true)).sum())
        if changed:
            right = int((true.argmax(1) == y).sum()), int((absent.argmax(1) == y).sum())
            return Outcome(
                "fail",
                f"With labels given through {way.name}, {changed} of {len(y)} predictions change"
                f" ({right[0]} are correct with the true ones, {right[1]} without any).",
                value=changed,
                threshold=0,
                measured={"true labels": right[0], "no labels": right[1]},
            )
    if bool(differ(absent, _answer(model, x, seed=1)).any()):
        return None  # random: whether the place matters cannot be seen (check 13 says so)
    order = torch.randperm(len(x)).to(x.device)
    moved = int(differ(absent, _answer(model, x[order])[order.argsort()]).sum())
    if moved:
        return Outcome(
            "fail",
            f"{moved} of {len(y)} predictions change with the place of the image in the batch, as"
            " if answers were kept in the order of the labels.",
            value=moved,
            threshold=0,
        )
    return None


def _required(model: nn.Module) -> str | None:
    """An argument without default beside the images, if any."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())[1:]
    except (TypeError, ValueError):
        return None
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for each in parameters:
        if each.default is inspect.Parameter.empty and each.kind not in variable:
            return each.name
    return None


def _answer(model: nn.Module, x: Tensor, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(x).float()


def _in_training(names: list[str]) -> Outcome:
    return Outcome(
        "fail",
        f"In evaluation {len(names)} modules are in training mode, '{names[0]}' among them: they"
        " may use the batch's statistics, drop units or expect labels.",
        value=len(names),
        threshold=0,
    )


def _distance(one: Tensor, other: Tensor) -> float:
    """Largest L2 distance of normalised rows; infinite where one is not finite."""
    apart = functional.normalize(one.float(), dim=1) - functional.normalize(other.float(), dim=1)
    return float(apart.norm(dim=1).nan_to_num(torch.inf).max())
