"""MetaOptNet's support vector machine solves and differentiates without qpth."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.svm import LinearSVC

from aal_bench.errors import RunFailed
from aal_bench.toolkits import learn2learn_import, qpth_absent
from aal_bench.toolkits.qpth_bridge import QPFunction

F64 = torch.float64


def program(seed, n=7, m=6, k=2, dtype=F64):
    """A strictly convex program with a feasible point, as leaves that require gradients."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=F64)

    root, feasible = normal(n, n), normal(n)
    G, A = normal(m, n), normal(k, n)
    h = G @ feasible + torch.rand(m, generator=generator, dtype=F64)
    tensors = (root @ root.T + torch.eye(n), 3 * normal(n), G, h, A, A @ feasible)
    return [value.to(dtype).requires_grad_() for value in tensors]


def optimum(*tensors):
    return QPFunction(verbose=False, maxIter=20)(*tensors)


# ---- the optimum ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_the_optimum_is_scipys(seed):
    tensors = program(seed)
    Q, p, G, h, A, b = (value.detach().numpy() for value in tensors)
    found = minimize(
        lambda z: z @ Q @ z / 2 + p @ z,
        np.zeros(len(p)),
        jac=lambda z: Q @ z + p,
        method="SLSQP",
        constraints=[
            {"type": "ineq", "fun": lambda z: h - G @ z, "jac": lambda _: -G},
            {"type": "eq", "fun": lambda z: A @ z - b, "jac": lambda _: A},
        ],
        options={"ftol": 1e-13, "maxiter": 500},
    )
    assert found.success
    z = optimum(*tensors)
    assert z.shape == (1, 7)
    np.testing.assert_allclose(z.detach().numpy()[0], found.x, rtol=0, atol=1e-6)


def test_without_an_active_constraint_it_is_a_linear_system():
    Q, p, G, _, _, _ = program(0)
    none = torch.empty(0, dtype=F64)
    z = optimum(Q, p, G, torch.full((6,), 1e3, dtype=F64), none, none)
    torch.testing.assert_close(z[0], torch.linalg.solve(Q, -p), rtol=0, atol=1e-9)


def test_a_bound_passes_its_own_gradient_and_stops_the_others():
    """Minimise z^2/2 - z with z <= h: z* = min(h, 1), by hand."""
    for h, dz_dh, dz_dp in ((0.25, 1.0, 0.0), (4.0, 0.0, -1.0)):
        Q, p = torch.ones(1, 1), torch.tensor([-1.0], requires_grad=True)
        bound = torch.tensor([h], requires_grad=True)
        none = torch.empty(0)
        z = optimum(Q, p, torch.ones(1, 1), bound, none, none)
        z.sum().backward()
        assert z.item() == pytest.approx(min(h, 1))
        assert bound.grad.item() == pytest.approx(dz_dh, abs=1e-6)
        assert p.grad.item() == pytest.approx(dz_dp, abs=1e-6)


def test_a_batch_is_its_programs_one_by_one():
    """Hard and easy ones together: one that is done waits unharmed for the others."""
    programs = [[value.detach() for value in program(seed)] for seed in range(4)]
    programs[1][1] = programs[1][1] * 1e3
    batch = [torch.stack(values) for values in zip(*programs, strict=True)]
    alone = torch.cat([optimum(*tensors) for tensors in programs])
    torch.testing.assert_close(optimum(*batch), alone, rtol=1e-9, atol=1e-9)


def test_a_program_that_is_done_first_is_not_driven_into_its_doubled_bound():
    """z1 <= 1/4 twice over: a few steps past its optimum nothing can be factored any more."""
    G = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=F64)
    Q = torch.tensor([[1.0, 1.0], [1.0, 1e-7]], dtype=F64).diag_embed()
    p = torch.tensor([[-1.0, -1.0], [-1e-3, -1e6]], dtype=F64)
    h = torch.tensor([[0.25, 0.25, 0.5], [1e6, 2e6, 3e8]], dtype=F64)
    none = torch.empty(0, dtype=F64)
    expected = torch.tensor([[0.25, 0.5], [1e-3, 3e8]], dtype=F64)
    torch.testing.assert_close(optimum(Q, p, G, h, none, none), expected, rtol=1e-9, atol=0)


def test_what_the_batch_shares_gets_the_sum_of_the_gradients():
    tensors, others = program(0), program(1)
    both = torch.stack([tensors[1], others[1]]).detach()
    optimum(tensors[0], both, *tensors[2:]).sum().backward()
    shared = [value.grad.clone() for value in tensors if value.grad is not None]
    for value in tensors:
        value.grad = None
    sum(optimum(tensors[0], p, *tensors[2:]).sum() for p in both).backward()
    alone = [value.grad for value in tensors if value.grad is not None]
    assert len(shared) == len(alone) == 5
    for one, other in zip(shared, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_float32_comes_back_as_float32_with_float64_inside():
    tensors = program(2, dtype=torch.float32)
    z = optimum(*tensors)
    z.sum().backward()
    exact = [value.detach().double().requires_grad_() for value in tensors]
    reference = optimum(*exact)
    reference.sum().backward()
    assert z.dtype == torch.float32
    assert torch.equal(z, reference.float())
    for value, twin in zip(tensors, exact, strict=True):
        assert value.grad.dtype == torch.float32
        torch.testing.assert_close(value.grad, twin.grad.float())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"Q": -torch.eye(2)}, "Q is not positive definite"),
        ({"Q": torch.full((2, 2), torch.nan)}, "an input is NaN"),
        ({"p": torch.tensor([torch.nan, 0])}, r"was not solved|an input is NaN"),
        ({"A": torch.ones(2, 2), "b": torch.tensor([0.0, 1.0])}, r"not solved|rows of A depend"),
        ({"h": torch.tensor([-1.0, -1.0])}, "was not solved"),  # z1 <= -1 and z1 >= 1
    ],
)
def test_what_has_no_optimum_is_an_error(change, match):
    tensors = {
        "Q": torch.eye(2),
        "p": torch.ones(2),
        "G": torch.tensor([[1.0, 0.0], [-1.0, 0.0]]),
        "h": torch.ones(2),
        "A": torch.tensor([[0.0, 1.0]]),
        "b": torch.zeros(1),
    } | change
    with pytest.raises(RunFailed, match=match) as failed:
        optimum(*tensors.values())
    assert "\n" not in str(failed.value)


# ---- its derivative -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_the_gradient_is_the_finite_difference_in_every_input(seed):
    tensors = program(seed, n=5, m=5, k=1)
    slack = (tensors[3] - tensors[2] @ optimum(*tensors)[0]).detach()
    assert 0 < (slack < 1e-6).sum() < 5  # some constraints bind and some do not
    assert ((slack < 1e-9) | (slack > 1e-2)).all()
    assert torch.autograd.gradcheck(optimum, tensors, eps=1e-6, atol=1e-5, rtol=1e-4)


def test_only_what_requires_a_gradient_gets_one():
    Q, *others = program(0)
    others = [value.detach() for value in others]
    optimum(Q, *others).sum().backward()
    assert Q.grad.shape == (7, 7)
    torch.testing.assert_close(Q.grad, Q.grad.T)
    assert all(value.grad is None for value in others)


def test_there_is_no_second_derivative():
    tensors = program(0)
    (gradient,) = torch.autograd.grad(
        optimum(*tensors).square().sum(), tensors[1], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# ---- learn2learn's SVClassifier ---------------------------------------------------------------


@pytest.fixture
def SVClassifier():
    learn2learn_import.repair()
    qpth_absent.repair()
    import learn2learn

    return learn2learn.nn.SVClassifier


def episode(ways, shots, dimensions=16, noise=1.0, seed=0):
    """Support and query features (ways * shots, d) around the same class means, and labels."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(ways, dimensions, generator=generator)
    y = torch.arange(ways).repeat_interleave(shots)
    support, query = (
        means[y] + noise * torch.randn(len(y), dimensions, generator=generator) for _ in range(2)
    )
    return support, query, y


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("shots", [1, 5, 15])
def test_separable_classes_are_told_apart(SVClassifier, shots, normalize):
    support, query, y = episode(5, shots, noise=0.1)
    kept = support.clone()
    classifier = SVClassifier(support, y, normalize=normalize)
    assert classifier.qp_solution.shape == (5 * shots, 5)
    assert torch.equal(classifier(query).argmax(1), y)
    assert torch.equal(support, kept)


@pytest.mark.parametrize(
    ("ways", "shots", "C"), [(5, 1, 0.1), (5, 5, 0.1), (3, 15, 0.1), (4, 5, 2)]
)
def test_its_logits_are_those_of_liblinears_crammer_singer_machine(SVClassifier, ways, shots, C):
    """MetaOptNet adds 1 to the kernel's diagonal: a feature of its own for every support image."""
    support, query, y = episode(ways, shots)
    classifier = SVClassifier(support, y, ways=ways, C_reg=C)
    reference = LinearSVC(
        C=C, multi_class="crammer_singer", fit_intercept=False, tol=1e-10, max_iter=1_000_000
    ).fit(torch.cat([support, torch.eye(len(y))], 1).numpy(), y.numpy())
    expected = query.numpy() @ reference.coef_[:, : support.shape[1]].T
    np.testing.assert_allclose(classifier(query).numpy(), expected, rtol=0, atol=1e-4)


def test_gradients_reach_support_and_query_features(SVClassifier):
    support, query, y = episode(3, 3, dimensions=4)

    def logits(support, query):
        return SVClassifier(support, y, ways=3)(query)

    inputs = [value.double().requires_grad_() for value in (support, query)]
    assert torch.autograd.gradcheck(logits, inputs, eps=1e-6, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("scale", [1e-3, 1, 1e2])
def test_features_of_any_usual_scale_are_fitted(SVClassifier, scale):
    support, query, y = episode(5, 5, dimensions=64)
    support[5] = support[6]  # an image twice
    support[7] = 0  # and one without a feature
    support = (support * scale).requires_grad_()
    SVClassifier(support, y)(query * scale).sum().backward()
    assert support.grad.isfinite().all()


# ---- the repair -------------------------------------------------------------------------------


@pytest.fixture
def unrepaired(monkeypatch):
    """learn2learn as it is imported where there is no qpth."""
    learn2learn_import.repair()
    import learn2learn.nn.metaoptnet
    from learn2learn.utils import _ImportRaiser

    for name in ("qpth", "qpth.qp"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    raiser = _ImportRaiser("qpth", "pip install qpth")
    monkeypatch.setattr(learn2learn.nn.metaoptnet, "QPFunction", raiser)
    yield learn2learn.nn
    for name in ("qpth", "qpth.qp"):
        sys.modules.pop(name, None)


def test_learn2learn_that_was_imported_before_is_mended(unrepaired):
    support, query, y = episode(3, 1, noise=0.1)
    with pytest.raises(ImportError, match="qpth required"):
        unrepaired.SVClassifier(support, y)
    assert qpth_absent.fault_present()
    qpth_absent.repair()
    qpth_absent.repair()
    assert not qpth_absent.fault_present()
    assert torch.equal(unrepaired.SVClassifier(support, y)(query).argmax(1), y)


def test_an_installed_qpth_is_used(unrepaired, tmp_path, monkeypatch):
    (tmp_path / "qpth").mkdir()
    (tmp_path / "qpth" / "__init__.py").write_text("")
    (tmp_path / "qpth" / "qp.py").write_text("QPFunction = 'the original'")
    monkeypatch.syspath_prepend(tmp_path)
    qpth_absent.repair()
    assert unrepaired.metaoptnet.QPFunction == "the original"
    assert not qpth_absent.fault_present()


def test_learn2learn_that_is_imported_after_finds_it_quietly():
    code = (
        "from aal_bench.toolkits import learn2learn_import, qpth_absent as q;"
        "assert q.fault_present(); learn2learn_import.repair(); q.repair();"
        "assert not q.fault_present(); import torch, learn2learn; from qpth.qp import QPFunction;"
        "s = learn2learn.nn.SVClassifier(torch.eye(3), torch.arange(3));"
        "assert s(torch.eye(3)).argmax(1).tolist() == [0, 1, 2]"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
