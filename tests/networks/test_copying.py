"""What a copy owns and what it shares."""

import torch
from torch import nn

from dmdistill.networks.copying import copy_sharing_frozen


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 2, 1))
    net[0].requires_grad_(False)
    net[2].bias.requires_grad_(False)
    return net


def shared(one, other):
    """Names of the tensors that are one in memory, and the answers' being equal."""
    x = torch.randn(4, 3, 6, 7)
    theirs = one.state_dict(keep_vars=True)
    assert torch.equal(one(x), other(x))
    return {name for name, tensor in other.state_dict(keep_vars=True).items() if tensor is theirs[name]}


def test_frozen_parameters_are_shared_and_the_others_copied():
    net = network()
    assert shared(net, copy_sharing_frozen(net)) == {"0.weight", "0.bias", "2.bias"}


def test_buffers_are_shared_where_nothing_changes_them():
    net = network().eval()
    buffers = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert shared(net, copy_sharing_frozen(net)) == {"0.weight", "0.bias", "2.bias", *buffers}


def test_what_is_trained_in_one_stays_in_the_other():
    net = network()
    made = copy_sharing_frozen(net)
    with torch.no_grad():
        made[2].weight.zero_()
    assert net[2].weight.abs().min() > 0
    assert made[2].weight.requires_grad
