"""learn2learn's WRN-28 at any size and width."""

from __future__ import annotations

import pytest
import torch

from aal_bench.toolkits import learn2learn_import
from aal_bench.toolkits.learn2learn_wrn28 import wrn28


@pytest.fixture(scope="module")
def theirs():
    """learn2learn's module of the network."""
    learn2learn_import.repair()
    from learn2learn.vision.models import wrn28 as module

    return module


def test_learn2learns_own_fits_84_pixels_only(theirs):
    backbone = theirs.WideResNet(28, 1, 0.0).eval()
    with pytest.raises(RuntimeError, match="too small"):
        backbone(torch.rand(1, 3, 32, 32))
    assert backbone(torch.rand(1, 3, 168, 168)).shape == (1, 4 * 64)


@pytest.mark.parametrize("size", [5, 16, 28, 30, 64, 100])
def test_every_size_is_pooled_to_one_number_a_channel(size):
    network = wrn28(classes=3, size=size, width=1).eval()
    x = torch.rand(2, 3, size, size)
    with torch.no_grad():
        assert network.features(x).shape == (2, 64)
        assert network(x).shape == (2, 3)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_at_84_pixels_it_is_learn2learns(theirs, mode):
    torch.manual_seed(0)
    backbone = theirs.WideResNet(28, 2, 0.0).train(mode == "train")
    torch.manual_seed(0)
    network = wrn28(classes=3, size=84, width=2).train(mode == "train")
    x = torch.rand(2, 3, 84, 84)
    assert list(network.features.state_dict()) == list(backbone.state_dict())
    with torch.no_grad():
        assert torch.equal(network.features(x), backbone(x))
        assert torch.equal(network.features.bn1.running_mean, backbone.bn1.running_mean)


def test_at_width_10_it_is_learn2learns_class(theirs):
    """Keys and shapes of the whole network: published weights load."""
    with torch.device("meta"):
        published = theirs.WRN28(output_size=7).state_dict()
        ours = wrn28(classes=7, size=32).state_dict()
    assert [(key, value.shape) for key, value in ours.items()] == [
        (key, value.shape) for key, value in published.items()
    ]
