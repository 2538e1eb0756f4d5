import torch
from torch import nn

from aal_bench.training.passes import counting_passes


def test_images_are_counted_on_their_way_forward_and_back():
    net, x = nn.Linear(3, 2), torch.rand(5, 3)
    net(x)
    with counting_passes(net) as counted:
        net(x).sum().backward()  # to the weights
        net(x.requires_grad_(True)).sum().backward()  # to both: one pass
        torch.autograd.grad(net(x[:2]).sum(), x)  # to the input
        net(x)  # never back
        with torch.no_grad():
            net(x)
    assert counted == {"forward": 5 + 5 + 2 + 5 + 5, "backward": 5 + 5 + 2}
    net(x).sum().backward()
    assert counted["forward"] == 22
