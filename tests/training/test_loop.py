"""The loop around the steps: divergence, selection, generators, records."""

import json
import math

import pytest
import torch

from aal_bench.errors import RunFailed, UserError
from aal_bench.training import checkpoint
from aal_bench.training.loop import seed_of

PASSES = {
    "standard": [1, 1],
    "fgsm": [2, 2],
    "rs-fgsm": [2, 2],
    "pgd": [11, 11],
    "trades": [13, 12],
    "aal-fgsm": [2, 2],
    "aal-pgd": [12, 12],
    "free": [8, 8],
    "lbgat": [12, 11],
    "iaat": [12, 11],  # its warm-up
    "atta": [2, 2],
    "cas": [11, 11],
    "again-mart": [12, 12],
}
PASSES_AWP = {"pgd": [12, 12], "trades": [15, 14], "aal-pgd": [13, 13]}
BROKEN = """
import torch
from aal_bench.methods.base import Method

class {name}(Method):
    attacks = False
    calls = 0

    def loss(self, model, batch, x_adv, objective):
        self.calls += 1
        loss = objective(x_adv, batch.targets)
        weight = next(model.parameters())
        return {broken} if self.calls == {at} else loss
"""


@pytest.mark.parametrize(
    ("method", "update", "expected"),
    [
        *((method, "plain", expected) for method, expected in PASSES.items()),
        *((method, "awp", expected) for method, expected in PASSES_AWP.items()),
    ],
)
def test_the_loop_counts_the_lean_number_of_passes(make_loop, method, update, expected):
    settings = ["attack.steps=10", *(["update.warmup=0"] if update == "awp" else [])]
    loop = make_loop(method=method, update=update, settings=settings)
    loop.stepper.model.train()
    loop.take_step(next(loop._batches()))
    assert loop.passes == expected
    assert not loop.stepper.model._forward_hooks


def test_passes_are_averaged_over_training_its_warm_up_included(make_loop):
    """7 of 16 steps are plain, of 16 images each; the last step of an epoch has 6 images."""
    settings = ("update.warmup=0.4",)
    loop = make_loop(method="standard", update="awp", epochs=2, settings=settings)
    plain, perturbed = 7 * 16, 6 + 118
    expected = (plain + 2 * perturbed) / (2 * 118)
    assert loop.fit().record["passes"] == [expected, expected]


# ---- divergence --------------------------------------------------------------------------------


def own_method(tmp_path, broken: str, at: int) -> str:
    name = f"Broken{at}"
    (tmp_path / "mine.py").write_text(BROKEN.format(name=name, broken=broken, at=at))
    return f"{tmp_path / 'mine.py'}:{name}"


def assert_saved_weights_are_finite(folder, below: int) -> None:
    path = folder / "checkpoints" / "state.pt"
    if path.exists():
        state = checkpoint.load(path)
        assert state["step"] < below
        assert all(value.isfinite().all() for value in state["model"].values())


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("at", [4, 6, 8, 11])
@pytest.mark.parametrize("broken", ["loss * torch.nan", "loss + torch.inf"], ids=["nan", "inf"])
def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(
    make_loop, tmp_path, broken, at, every
):
    method = own_method(tmp_path, broken, at)
    folder = tmp_path / "run"
    loop = make_loop(folder, method=method, settings=(f"train.checkpoint_every={every}",))
    epoch = 1 + (at > 8)
    with pytest.raises(
        RunFailed,
        match=rf"the loss is not finite at step {at} of 24 \(epoch {epoch}\); lower train.lr",
    ):
        loop.fit()
    assert_saved_weights_are_finite(folder, below=at)


def test_a_finite_loss_with_a_broken_gradient_stops_it_before_the_checkpoint(make_loop, tmp_path):
    """The last step's loss says nothing about the weights that it leaves."""
    method = own_method(tmp_path, "loss + (0 * weight).sqrt().sum()", at=24)
    folder = tmp_path / "run"
    with pytest.raises(RunFailed, match=r"the weights are not finite at step 24 of 24 \(epoch 3\)"):
        make_loop(folder, method=method).fit()
    assert_saved_weights_are_finite(folder, below=24)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_rate_out_of_all_bounds_is_named(make_loop, tmp_path):
    loop = make_loop(method="pgd", settings=("train.lr=1e30", "train.checkpoint_every=1"))
    with pytest.raises(
        RunFailed, match=r"not finite at step \d+ of 24 \(epoch 1\); lower train\.lr"
    ):
        loop.fit()
    assert_saved_weights_are_finite(tmp_path, below=24)


# ---- generators --------------------------------------------------------------------------------


def test_validation_does_not_move_the_training(make_loop, tmp_path):
    ends = {}
    for name, validate in (("with", True), ("without", False)):
        loop = make_loop(tmp_path / name, method="pgd", validate=validate)
        ends[name] = loop.fit()
    assert all("val_pgd" in row for row in _rows(tmp_path / "with"))
    assert ends["without"].best is None
    for key, value in ends["with"].last.items():
        assert torch.equal(value, ends["without"].last[key])


def test_seeds_of_runs_and_epochs_never_coincide():
    seeds = {seed_of(run, epoch, use) for run in range(60) for epoch in range(60) for use in (0, 1)}
    assert len(seeds) == 60 * 60 * 2
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_every_epoch_sees_every_image_once_in_another_order(make_loop):
    loop = make_loop(method="standard")
    seen = []
    for epoch in range(2):
        loop.epoch, loop.step = epoch, epoch * 8
        batches = list(loop._batches())
        assert [len(batch.idx) for batch in batches] == [16] * 7 + [118 - 7 * 16]
        seen.append(torch.cat([batch.idx for batch in batches]))
        assert {batch.epoch for batch in batches} == {epoch}
    assert all(order.sort().values.tolist() == list(range(118)) for order in seen)
    assert not torch.equal(*seen)


# ---- selection and records ---------------------------------------------------------------------


def _rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_best_is_the_first_epoch_of_highest_pgd_accuracy_and_last_the_last(make_loop, tmp_path):
    scores = iter([0.3, 0.7, 0.7, 0.1])
    kept = []

    def validate(model):
        kept.append({key: value.clone() for key, value in model.state_dict().items()})
        return {"val_clean": 0.9, "val_pgd": next(scores)}

    loop = make_loop(method="standard", epochs=4)
    loop.setting = loop.setting._replace(validate=validate)
    trained = loop.fit()
    assert trained.record["best_epoch"] == 2
    assert trained.best is not None
    for key in trained.last:
        assert torch.equal(trained.best[key], kept[1][key])
        assert torch.equal(trained.last[key], kept[3][key])
    assert not torch.equal(kept[1]["network.0.weight"], kept[3]["network.0.weight"])


def test_validation_is_due_every_so_many_epochs_and_at_the_end(make_loop, tmp_path):
    settings = ("train.validate_every=2",)
    make_loop(method="standard", epochs=5, validate=True, settings=settings).fit()
    validated = [row["epoch"] for row in _rows(tmp_path) if "val_clean" in row]
    assert validated == [2, 4, 5]


def test_the_record_and_the_rows_say_what_happened(make_loop, tmp_path):
    loop = make_loop(method="aal-pgd", epochs=2, validate=True)
    trained = loop.fit()
    rows, record = _rows(tmp_path), trained.record
    assert [row["step"] for row in rows] == [8, 16]
    assert record["final"] == rows[-1]
    assert record["steps"] == 16
    assert record["images"] == 118
    assert record["seconds"] == pytest.approx(sum(row["seconds"] for row in rows), abs=0.02)
    assert record["peak_memory_bytes"] > 1e7
    assert {"mask_shift", "backtrack_shift", "mean_k"} <= rows[0].keys()
    assert rows[0]["mean_k"] == pytest.approx(0.25, abs=0.05)  # M = 0.5 at first, k = M * M
    assert math.isfinite(rows[0]["loss"])
    assert trained.last.keys() == loop.stepper.model.state_dict().keys()


def test_an_update_that_cannot_follow_the_attack_is_refused_before_anything_is_written(
    make_loop, tmp_path
):
    with pytest.raises(UserError, match="update awp cannot follow"):
        make_loop(method="aal-pgd", update="awp", settings=("detach_mask=false",))
    assert list(tmp_path.iterdir()) == []
    make_loop(method="aal-pgd", epochs=1, settings=("detach_mask=false",)).fit()
