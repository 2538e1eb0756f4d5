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


def test_an_output_that_a_backward_pass_passes_by_is_not_counted():
    """torch hands its hook None where outputs of one graph node are used in part."""

    class Both(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.set_materialize_grads(False)
            return x.clone(), 2 * x

        @staticmethod
        def backward(_, *gradients):
            return 2 * gradients[1]

    class Net(nn.Module):
        def forward(self, x):
            first, self.second = Both.apply(x)
            return first

    net, x = Net(), torch.rand(5, 3, requires_grad=True)
    with counting_passes(net) as counted:
        net(x)
        net.second.sum().backward()
    assert counted == {"forward": 5, "backward": 0}
    assert torch.equal(x.grad, torch.full((5, 3), 2.0))
