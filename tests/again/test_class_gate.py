"""The class gate against its formula, written out element by element."""

import copy

import pytest
import torch

from aal_bench.again.class_gate import ClassGate, partners

B, C, K = 6, 4, 5
Y = torch.tensor([0, 3, 1, 4, 2, 0])


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(B, C, 3, 2, dtype=torch.float64, generator=generator)


@pytest.fixture
def gate():
    """gate(alpha=0.6, ...) -> in training mode, float64, the same weights every time."""

    def build(**options):
        torch.manual_seed(0)
        return ClassGate(K, C, **options).double()

    return build


def auxiliary(gate, features):
    """a = W mean_hw A + b, summed by hand."""
    rows = []
    for image in features:
        pooled = [sum(channel.flatten().tolist()) / channel.numel() for channel in image]
        rows.append(
            [
                sum(w * p for w, p in zip(weight, pooled, strict=True)) + bias
                for weight, bias in zip(gate.fc.weight.tolist(), gate.fc.bias.tolist(), strict=True)
            ]
        )
    return torch.tensor(rows, dtype=torch.float64)


def scaled(features, rows):
    """Every channel of every image times its number in `rows` (B, C)."""
    out = features.clone()
    for image in range(len(features)):
        for channel in range(features.shape[1]):
            out[image, channel] *= rows[image][channel]
    return out


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_without_labels_the_channels_are_scaled_by_the_weights_of_the_predicted_class(
    gate, features
):
    gate = gate(alpha=0.6).eval()
    weight = gate.fc.weight.detach()
    predicted = auxiliary(gate, features).argmax(1).tolist()
    assert len(set(predicted)) > 1
    close(gate(features), scaled(features, [weight[k].tolist() for k in predicted]))


def test_a_soft_gate_mixes_the_weights_of_all_classes_by_their_probability(gate, features):
    gate = gate(test_gate="soft").eval()
    shares = auxiliary(gate, features).softmax(1)
    columns = list(zip(*gate.fc.weight.tolist(), strict=True))
    rows = [
        [sum(p * w for p, w in zip(share, column, strict=True)) for column in columns]
        for share in shares.tolist()
    ]
    close(gate(features), scaled(features, rows))


def test_a_straight_gate_answers_like_the_hard_one_and_differentiates_like_the_soft_one(
    gate, features
):
    gate, weighting = gate().eval(), torch.linspace(-1, 1, features.numel()).view_as(features)
    x = features.requires_grad_()
    values, gradients = [], []
    for kind in ("hard", "soft", "straight"):
        with gate.gating(kind):
            out = gate(x)
        values.append(out.detach())
        gradients.append(torch.autograd.grad((out * weighting).sum(), x)[0])
    close(values[2], values[0])
    assert (values[0] - values[1]).abs().max() > 1e-3
    # A * gate: the straight one has the hard gate's own scale and the soft gate's derivative.
    through_gate = [
        gradient - (value / x.detach()) * weighting
        for value, gradient in zip(values, gradients, strict=True)
    ]
    close(through_gate[0], torch.zeros_like(features))
    torch.testing.assert_close(through_gate[2], through_gate[1], rtol=1e-8, atol=1e-12)


def test_in_training_the_weights_of_the_label_and_of_another_class_are_mixed(gate, features):
    gate = gate(alpha=0.6, mixing="permutation")
    torch.manual_seed(3)
    other = Y[torch.randperm(B)]
    torch.manual_seed(3)
    with gate.labelled(Y):
        found = gate(features)
    weight = gate.fc.weight.detach()
    rows = [
        [0.6 * float(weight[y, c]) + 0.4 * float(weight[z, c]) for c in range(C)]
        for y, z in zip(Y.tolist(), other.tolist(), strict=True)
    ]
    close(found, scaled(features, rows))


def test_with_alpha_one_it_is_the_gate_of_cas_and_draws_nothing(gate, features):
    gate = gate(alpha=1.0, mixing="other")
    state = torch.get_rng_state()
    with gate.labelled(Y):
        found = gate(features)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found, features * gate.fc.weight[Y][:, :, None, None])


@pytest.mark.parametrize("mixing", ["permutation", "other", "uniform", "second"])
@pytest.mark.parametrize("mode", ["train", "hard", "soft"])
def test_equal_weights_leave_the_features_as_they_are_but_for_a_scale(gate, features, mixing, mode):
    """W = c everywhere: nothing of the image's own pattern is suppressed."""
    gate = gate(alpha=0.6, mixing=mixing, test_gate="hard" if mode == "train" else mode)
    with torch.no_grad():
        gate.fc.weight.fill_(0.7)
    if mode == "train":
        with gate.labelled(Y):
            close(gate(features), 0.7 * features)
    else:
        close(gate.eval()(features), 0.7 * features)


@pytest.mark.parametrize("alpha", [1.0, 0.6])
def test_the_gradient_reaches_the_weights_through_gate_and_auxiliary_logits(gate, features, alpha):
    gate = gate(alpha=alpha, mixing="second")

    def both(x, weight, bias):
        with gate.labelled(Y), gate.recording() as logits:
            out = torch.func.functional_call(gate, {"fc.weight": weight, "fc.bias": bias}, (x,))
        return out, logits[0]

    inputs = [features, gate.fc.weight, gate.fc.bias]
    assert torch.autograd.gradcheck(both, [v.detach().requires_grad_() for v in inputs])


# ---- the other class ------------------------------------------------------------------------


def logits(rows=B):
    return torch.randn(rows, K, generator=torch.Generator().manual_seed(5))


def test_a_permutation_takes_the_batch_s_own_labels():
    found = torch.stack([partners("permutation", Y, logits()) for _ in range(50)])
    assert all(sorted(row.tolist()) == sorted(Y.tolist()) for row in found)
    assert (found == Y).any()  # it may meet the same class
    assert (found != found[0]).any()


def test_a_forced_other_class_is_one_of_the_batch_and_never_the_label():
    y = torch.tensor([0, 0, 3, 3, 0, 1])
    found = torch.stack([partners("other", y, logits()) for _ in range(300)])
    assert not (found == y).any()
    for position, label in enumerate(y.tolist()):
        others = [k for k in y.tolist() if k != label]
        for k in set(others):  # each member of another class as often as the next
            share = (found[:, position] == k).double().mean().item()
            assert share == pytest.approx(others.count(k) / len(others), abs=0.1)
        assert set(found[:, position].tolist()) == set(others)


def test_in_a_batch_of_one_class_the_forced_other_class_is_any_other():
    y = torch.full((400,), 2)
    found = partners("other", y, logits(400))
    assert set(found.tolist()) == {0, 1, 3, 4}


def test_a_uniform_other_class_is_each_equally_often():
    y = torch.arange(K).repeat(2000)
    found = partners("uniform", y, logits(len(y)))
    for k in range(K):
        shares = torch.bincount(found[y == k], minlength=K) / 2000
        assert shares[k] == 0
        assert shares[torch.arange(K) != k].sub(0.25).abs().max() < 0.05


def test_the_second_best_class_is_that_of_the_auxiliary_logits():
    rows = logits()
    expected = [sorted(range(K), key=row.__getitem__)[-2] for row in rows.tolist()]
    assert partners("second", Y, rows).tolist() == expected


# ---- contexts -------------------------------------------------------------------------------


@pytest.mark.parametrize("mixing", ["permutation", "other", "uniform", "second"])
def test_an_attacked_pass_mixes_in_the_classes_of_its_clean_pass_and_forgets_them(
    gate, features, mixing
):
    gate, attacked = gate(alpha=0.6, mixing=mixing), -features
    torch.manual_seed(3)
    other = partners(mixing, Y, gate.fc(features.mean((2, 3))))
    weight = gate.fc.weight
    torch.manual_seed(3)
    with gate.labelled(Y):
        with gate.clean_pass():
            gate(features)
        with gate.attacked_pass():
            found = gate(attacked)
        rows = 0.6 * weight[Y] + 0.4 * weight[other]
        close(found, attacked * rows[:, :, None, None])
        with gate.attacked_pass():
            anew = {round(gate(attacked).sum().item(), 9) for _ in range(9)}
    assert anew != {round(found.sum().item(), 9)}


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_pinned_gate_is_that_of_the_given_class_in_any_mode(gate, features, mode):
    gate = gate(alpha=0.6).train(mode == "train")
    weight = gate.fc.weight.detach()
    with gate.pinned(3):
        close(gate(features), scaled(features, [weight[3].tolist()] * B))
        with gate.pinned(Y):
            close(gate(features), scaled(features, weight[Y].tolist()))
        close(gate(features), scaled(features, [weight[3].tolist()] * B))


def test_a_pinned_gate_is_linear_in_the_features(gate, features):
    gate = gate().eval()
    with gate.pinned(1):
        close(gate(2 * features) - gate(features), gate(features))


def test_a_training_pass_without_labels_says_what_to_do(gate, features):
    with pytest.raises(RuntimeError, match=r"needs the labels.*labelled\(y\).*model\.eval\(\)"):
        gate()(features)


def test_a_label_at_test_time_is_refused(gate, features):
    gate = gate().eval()
    with gate.labelled(Y), pytest.raises(RuntimeError, match="eval mode takes no labels"):
        gate(features)
    gate(features)


def test_records_hold_every_pass_of_their_context_and_nothing_stays(gate, features):
    gate = gate().eval()
    with gate.recording() as outer:
        gate(features)
        with gate.recording() as inner:
            gate(features + 1)
    gate(features)
    assert (len(outer), len(inner)) == (2, 1)
    close(outer[0].detach(), auxiliary(gate, features))
    assert outer[1] is inner[0]
    copy.deepcopy(gate)  # which a tensor with a graph would not allow


@pytest.mark.parametrize("mode", ["train", "hard", "soft", "straight"])
def test_under_autocast_the_features_keep_their_type(mode):
    gate = ClassGate(K, C, alpha=0.6, test_gate="hard" if mode == "train" else mode)
    gate.train(mode == "train")
    features = torch.rand(B, C, 3, 2)
    with torch.autocast("cpu", torch.bfloat16), gate.recording() as seen:
        low = features.bfloat16()
        with gate.labelled(Y) if mode == "train" else gate.gating(gate.test_gate):
            assert gate(low).dtype == torch.bfloat16
    assert seen[0].dtype == torch.bfloat16
