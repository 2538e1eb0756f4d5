"""learn2learn's ResNet-12 at any size, with a DropBlock that neither forgets nor miscounts."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from aal_bench.attacks.linf import attacking, input_gradient, linf_pgd
from aal_bench.errors import UserError
from aal_bench.toolkits import learn2learn_import
from aal_bench.toolkits.learn2learn_resnet12 import resnet12

LAYERS = ("layer1", "layer2", "layer3", "layer4")


@pytest.fixture(scope="module")
def theirs():
    """learn2learn's own class."""
    learn2learn_import.repair()
    from learn2learn.vision.models import ResNet12

    return ResNet12


@pytest.fixture(scope="module")
def built():
    """One network for 16 pixels, copied by the tests that change it."""
    torch.manual_seed(0)
    return resnet12(classes=3, size=16)


def counters(network):
    return [getattr(network.features, layer)[0].num_batches_tracked for layer in LAYERS]


def set_counters(network, count):
    for layer in LAYERS:
        getattr(network.features, layer)[0].num_batches_tracked = count


def saved_counters(network):
    state = network.state_dict()
    return [int(state[f"features.{layer}.0.num_batches_tracked"]) for layer in LAYERS]


# ---- at any size ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_learn2learns_own_fits_no_smaller_image(theirs, mode):
    network = theirs(3).train(mode == "train")
    with pytest.raises(ZeroDivisionError):
        network(torch.rand(2, 3, 32, 32))  # a block of 5 in a map of 4
    with pytest.raises(RuntimeError, match=r"overflow|too small"):
        network(torch.rand(2, 3, 28, 28))


@pytest.mark.parametrize("size", [16, 28, 32, 50, 100])
def test_every_size_is_pooled_to_640_features(theirs, size):
    network = resnet12(classes=3, size=size)
    x = torch.rand(2, 3, size, size)
    assert isinstance(network, theirs)
    for mode in (True, False):
        network.train(mode)
        assert network.features(x).shape == (2, 640)
        assert network(x).isfinite().all()


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_at_84_pixels_it_is_learn2learns(theirs, mode):
    """Same seed, same weights; same counters and seed, same DropBlock: the same bits."""
    torch.manual_seed(0)
    one = theirs(3).train(mode == "train")
    torch.manual_seed(0)
    other = resnet12(classes=3, size=84).train(mode == "train")
    x = torch.rand(2, 3, 84, 84)
    for count in (0, 40_000):
        logits = []
        for network in (one, other):
            set_counters(network, count)
            torch.manual_seed(1)
            logits.append(network(x))
        assert torch.equal(*logits)


def test_the_block_is_no_larger_than_the_last_map():
    """At 32 pixels 2, as the RFS authors set it for CIFAR-FS."""
    sides = {size: resnet12(2, size).features.layer4[0].block_size for size in (16, 32, 64, 84, 96)}
    assert sides == {16: 1, 32: 2, 64: 4, 84: 5, 96: 5}


def test_dropblock_grows_with_the_count_at_32_pixels():
    """LeakyReLU leaves no zeros, so every zero of the last map was dropped."""
    torch.manual_seed(0)
    network = resnet12(classes=3, size=32)
    dropped = []
    network.features.layer4.register_forward_hook(
        lambda _module, _inputs, output: dropped.append(float((output == 0).float().mean()))
    )
    for count in (0, 40_000):
        set_counters(network, count)
        network(torch.rand(8, 3, 32, 32))
    assert dropped[0] == 0
    assert 0.02 < dropped[1] <= 0.13  # 0.1 of the channels, or a part of each


def test_images_that_vanish_are_refused():
    with pytest.raises(UserError, match="resnet12 needs images of at least 16 pixels, not 15"):
        resnet12(classes=5, size=15)


# ---- the counter ----------------------------------------------------------------------------


def test_learn2learns_own_counts_every_pass_and_saves_none(theirs):
    network = theirs(2).eval()
    with torch.no_grad():
        network(torch.rand(1, 3, 84, 84))
    assert counters(network) == [1] * 4
    assert not any(key.endswith(".0.num_batches_tracked") for key in network.state_dict())


def test_only_passes_that_train_the_weights_are_counted(built):
    network, x = deepcopy(built), torch.rand(2, 3, 16, 16)
    network(x)
    network(x).sum().backward()
    assert counters(network) == [2] * 4

    with torch.no_grad():
        network(x)
    with torch.inference_mode():
        network(x)
    network.eval()
    network(x)
    network.train().requires_grad_(False)
    network(x)
    assert counters(network) == [2] * 4

    network.classifier.requires_grad_(True)  # a head trained on frozen features
    network(x)
    assert counters(network) == [2] * 4
    network.features.layer4.requires_grad_(True)
    network(x)
    assert counters(network) == [2, 2, 2, 3]


@pytest.mark.parametrize("bn", ["eval", "train"])
def test_an_attack_is_not_counted(built, bn):
    """In train mode it moves batch norm's statistics, as it should, and not the counters."""
    network, x = deepcopy(built), torch.rand(2, 3, 16, 16)
    y = torch.tensor([0, 1])

    def loss(x_adv):
        return torch.nn.functional.cross_entropy(network(x_adv), y, reduction="sum")

    network(x)
    with attacking(network, bn=bn):
        gradient = input_gradient(loss, x)
        linf_pgd(loss, x, x, 8 / 255, 2 / 255, 3, gradient=gradient)
    assert counters(network) == [1] * 4
    batches = int(network.features.layer1[0].bn1.num_batches_tracked)
    assert batches == (1 if bn == "eval" else 4)
    network(x)
    assert counters(network) == [2] * 4


def test_an_attack_sees_the_dropblock_of_the_step_it_belongs_to(built):
    """Passes that do not count leave the share of DropBlock where it is, bit by bit."""
    network, x = deepcopy(built), torch.rand(2, 3, 16, 16)
    set_counters(network, 20_000)
    logits = []
    with attacking(network, bn="train"):
        for _ in range(2):
            torch.manual_seed(0)
            logits.append(network(x))
    assert torch.equal(*logits)


def test_the_count_is_saved_loaded_and_copied_with_the_weights(built):
    network, x = deepcopy(built), torch.rand(2, 3, 16, 16)
    for _ in range(3):
        network(x)
    assert saved_counters(network) == [3] * 4
    value = network.state_dict()["features.layer1.0.num_batches_tracked"]
    assert (value.dtype, value.shape) == (torch.int64, ())

    twin = deepcopy(network)
    network(x)
    assert (counters(twin), counters(network)) == ([3] * 4, [4] * 4)
    twin(x)
    assert saved_counters(twin) == [4] * 4

    again = resnet12(classes=3, size=16)
    assert counters(again) == [0] * 4
    state = network.state_dict()
    again.load_state_dict(state)
    assert counters(again) == [4] * 4
    assert "features.layer1.0.num_batches_tracked" in state  # not taken out of the caller's

    copied = deepcopy(again)
    copied.load_state_dict(built.state_dict())
    assert (counters(copied), counters(again)) == ([0] * 4, [4] * 4)


def test_a_resumed_run_goes_on_with_the_same_dropblock(built):
    network, x = deepcopy(built), torch.rand(4, 3, 16, 16)
    set_counters(network, 30_000)
    resumed, forgetful = resnet12(classes=3, size=16), resnet12(classes=3, size=16)
    resumed.load_state_dict(network.state_dict())
    forgetful.load_state_dict(network.state_dict())
    set_counters(forgetful, 0)
    logits = []
    for each in (network, resumed, forgetful):
        torch.manual_seed(0)
        logits.append(each(x))
    assert torch.equal(logits[1], logits[0])
    assert not torch.equal(logits[2], logits[0])


def test_learn2learns_weights_load_without_a_count(theirs):
    torch.manual_seed(1)
    published = theirs(3).state_dict()
    network = resnet12(classes=3, size=16)
    network.load_state_dict(published)
    assert counters(network) == [0] * 4
    assert all(torch.equal(network.state_dict()[key], value) for key, value in published.items())
