"""One step: precision, averaging, clipping, compilation, and plain SGD as the yardstick."""

import copy
from shutil import which

import pytest
import torch
from torch.nn import functional as F

from aal_bench.adapters.method import build_update
from aal_bench.errors import UserError
from aal_bench.training.step import Setting, Stepper


def steps(loop, count):
    loop.stepper.model.train()
    batches = loop._batches()
    for _ in range(count):
        yield loop.take_step(next(batches))


def test_standard_training_is_textbook_sgd_on_contiguous_tensors(make_loop):
    """Fused, channels_last steps against momentum and weight decay written out, eight of them."""
    loop = make_loop(method="standard", settings=("train.lr=0.05",))
    net = copy.deepcopy(loop.setting.model).to(memory_format=torch.contiguous_format).train()
    momenta = [torch.zeros_like(weight) for weight in net.parameters()]
    for number, batch in enumerate(loop._batches()):
        loss = F.cross_entropy(net(batch.x.contiguous()), batch.targets)
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for weight, gradient, momentum in zip(
                net.parameters(), gradients, momenta, strict=True
            ):
                momentum.mul_(0.9).add_(gradient + 5e-4 * weight)
                weight -= batch.lr * momentum
        loop.stepper.model.train()
        loop.take_step(batch)
        assert loop.step == number + 1
    assert loop.step == 8
    for key, value in net.state_dict().items():
        torch.testing.assert_close(
            loop.stepper.model.state_dict()[key], value, rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("method", ["standard", "aal-fgsm"])
def test_the_average_is_exponential_over_weights_and_statistics(make_loop, method):
    decay = 0.7
    loop = make_loop(method=method, ema=decay)
    seen = []
    for _ in steps(loop, 6):
        state = loop.stepper.model.state_dict()
        seen.append({k: v.double().clone() for k, v in state.items() if v.is_floating_point()})
    averaged = loop.stepper.weights()
    assert averaged.keys() == loop.stepper.model.state_dict().keys()
    for key in seen[0]:
        # theta_1 starts it: d^5 theta_1 + (1 - d) sum_t d^(6 - t) theta_t
        closed = decay**5 * seen[0][key]
        for t in range(2, 7):
            closed = closed + (1 - decay) * decay ** (6 - t) * seen[t - 1][key]
        torch.testing.assert_close(averaged[key].double(), closed, rtol=1e-5, atol=1e-7)
    weight = next(key for key in seen[0] if key.endswith("0.weight"))
    assert not torch.allclose(averaged[weight].double(), seen[-1][weight])


def test_the_average_is_what_is_validated_and_kept(make_loop, tmp_path):
    loop = make_loop(method="standard", ema=0.9, validate=True, epochs=1)
    trained = loop.fit()
    assert trained.best is not None
    for key, value in loop.stepper.averaged.module.state_dict().items():
        assert torch.equal(trained.last[key], value)
        assert torch.equal(trained.best[key], value)


def test_clipping_bounds_the_length_of_the_first_step(make_loop):
    settings = [
        "train.lr=0.5",
        "train.weight_decay=0",
        "train.momentum=0",
        "train.schedule=constant",
    ]
    moved = {}
    for clip in (None, 0.01):
        given = [*settings, f"train.grad_clip={clip}"] if clip else settings
        loop = make_loop(method="standard", settings=given)
        before = [weight.detach().clone() for weight in loop.stepper.model.parameters()]
        next(steps(loop, 1))
        pairs = zip(before, loop.stepper.model.parameters(), strict=True)
        moved[clip] = sum((new - old).square().sum().item() for old, new in pairs) ** 0.5
    assert moved[0.01] == pytest.approx(0.5 * 0.01, rel=1e-3)
    assert moved[None] > 10 * moved[0.01]


def test_a_group_keeps_its_share_of_the_rate(make_loop):
    loop = make_loop(method="standard")
    loop.stepper.optimizer.param_groups[0]["lr_factor"] = 0.5
    batch = next(loop._batches())
    loop.take_step(batch)
    assert loop.stepper.optimizer.param_groups[0]["lr"] == batch.lr / 2


@pytest.mark.parametrize("method", ["pgd", "trades", "aal-pgd"])
def test_bf16_runs_to_the_end_with_fp32_weights_and_losses(make_loop, method):
    loop = make_loop(method=method, precision="bf16", ema=0.9, validate=True, epochs=2)
    batch = next(loop._batches())
    inside = []
    hook = loop.stepper.model.network[3].register_forward_hook(
        lambda _module, _inputs, output: inside.append(output.dtype)
    )
    trained = loop.fit()
    hook.remove()
    assert set(inside) == {torch.bfloat16}
    assert loop.stepper.objective(batch.x, batch.targets).dtype == torch.float32
    assert {v.dtype for v in trained.last.values()} == {torch.float32, torch.int64}
    assert all(value.isfinite().all() for value in trained.last.values())
    fp32 = make_loop(method=method, ema=0.9, epochs=2, folder=loop.setting.folder / "fp32").fit()
    assert trained.record["final"]["loss"] == pytest.approx(fp32.record["final"]["loss"], rel=0.02)


def test_one_run_after_another_in_a_process_has_its_own_precision(make_loop, tmp_path):
    for number, precision in enumerate(["bf16", "fp32", "bf16"]):
        loop = make_loop(tmp_path / str(number), method="standard", precision=precision)
        batch, seen = next(loop._batches()), []
        loop.stepper.model.network[0].register_forward_hook(
            lambda _module, _inputs, output, seen=seen: seen.append(output.dtype)
        )
        loop.take_step(batch)
        assert seen == [torch.bfloat16 if precision == "bf16" else torch.float32]


def test_a_launcher_of_several_processes_is_refused(make_loop, monkeypatch):
    loop = make_loop(method="standard")
    monkeypatch.setattr(type(loop.stepper.accelerator), "num_processes", 2)
    with pytest.raises(UserError, match="one process so far"):
        make_loop(method="standard")


@pytest.mark.skipif(which("g++") is None, reason="torch.compile writes C++ and no compiler is here")
def test_a_compiled_network_trains_the_same_weights(make_loop, tmp_path):
    """Inductor's own kernels, in fp32: equal to eager up to the order of its sums."""
    ends = []
    for compiled in (True, False):
        folder = tmp_path / str(compiled)
        loop = make_loop(folder, method="fgsm", compile=compiled)
        assert len(list(steps(loop, 2))) == 2
        assert loop.passes == [2, 2]
        ends.append(loop.stepper.weights())
    assert ends[0].keys() == ends[1].keys()
    for key in ends[0]:
        torch.testing.assert_close(ends[0][key], ends[1][key], rtol=1e-3, atol=1e-4)


def test_a_method_whose_networks_no_adapter_built_is_refused(toy, tmp_path):
    """As on a task family that builds none: one line, not a KeyError in the first step."""
    adapter, method, model, folder = toy.setting(tmp_path, method="lbgat")
    train, _ = adapter.training_split()
    given = (adapter.run, model, method, build_update(adapter.run), adapter.objective, train)
    with pytest.raises(UserError, match="networks beside the model are for images with labels"):
        Stepper(Setting(*given, None, folder))
