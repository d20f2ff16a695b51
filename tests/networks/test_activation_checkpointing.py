"""Gradient checkpointing: the same gradients, computed twice."""

import copy

import pytest
import torch
from torch import nn

from dmdistill.commands.plan.tensor_ledger import Ledger
from dmdistill.core.denoisers import X0Denoiser
from dmdistill.core.schedules import EDM
from dmdistill.networks.activation_checkpointing import CHECKPOINTING
from dmdistill.networks.dhariwal_unet import DhariwalUNet
from dmdistill.networks.lora import add_lora
from dmdistill.networks.song_unet import SongUNet
from helpers.tiny_models import unet2d_network


def song():
    net = SongUNet(
        img_resolution=8, in_channels=3, out_channels=3, model_channels=16, channel_mult=(1, 2), num_blocks=1
    )
    return net, lambda net, x, t: net(x, t), lambda net: net.dec["4x4_in0"].conv1


def unet():
    pytest.importorskip("diffusers")
    net = unet2d_network()
    return net, lambda net, x, t: net(x, t).sample, lambda net: net.mid_block.resnets[1].conv1


@pytest.fixture(params=[song, unet])
def case(request):
    """A network random in every weight, how to ask it, and a layer inside one of its blocks."""
    torch.manual_seed(0)
    net, ask, layer = request.param()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net.eval(), ask, layer


def gradients(net, ask, precision):
    rng = torch.Generator().manual_seed(1)
    x, t = torch.randn(2, 3, 8, 8, generator=rng).requires_grad_(), torch.rand(2, generator=rng)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is not None):
        loss = ask(net, x, t).float().square().mean()
    return [loss, *torch.autograd.grad(loss, [x, *(p for p in net.parameters() if p.requires_grad)])]


@pytest.mark.parametrize("what", CHECKPOINTING)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_gradients_are_the_same(precision, frozen, what, case):
    net, ask, layer = case
    if frozen:  # all but one layer, as with adapters
        net.requires_grad_(False)
        layer(net).requires_grad_(True)
    plain = gradients(net, ask, precision)
    CHECKPOINTING[what](net)
    for mine, theirs in zip(gradients(net, ask, precision), plain, strict=True):
        assert torch.equal(mine, theirs)
    assert plain[1].abs().max() > 0


def test_blocks_are_computed_again_only_where_there_is_a_gradient(case):
    net, ask, layer = case
    x, t = torch.randn(2, 3, 8, 8), torch.rand(2)
    with torch.no_grad():
        plain = ask(net, x, t)
    CHECKPOINTING["blocks"](net)
    asked = []
    layer(net).register_forward_hook(lambda *_: asked.append(1))
    with torch.no_grad():
        assert torch.equal(ask(net, x, t), plain)
    assert len(asked) == 1
    ask(net, x, t).sum().backward()
    assert len(asked) == 3


@pytest.mark.parametrize("what", CHECKPOINTING)
def test_a_copy_asks_its_own_blocks(what, case):
    net, ask, _ = case
    CHECKPOINTING[what](net)
    copied = copy.deepcopy(net)
    before = gradients(net, ask, None)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    for mine, theirs in zip(gradients(copied, ask, None), before, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("device", "times"), [("cpu", 1), ("meta", 2)])
def test_auto_computes_norms_again_on_a_gpu_only(device, times):
    net, ask, _ = song()
    CHECKPOINTING["auto"](net.to(device))
    asked = []
    net.dec["4x4_in0"].norm0.register_forward_hook(lambda *_: asked.append(1))
    ask(net, torch.randn(2, 3, 8, 8, device=device), torch.rand(2, device=device)).sum().backward()
    assert len(asked) == times


def test_a_network_without_blocks_is_refused():
    with pytest.raises(ValueError, match="--checkpointing blocks: Linear has neither"):
        CHECKPOINTING["blocks"](nn.Linear(2, 3))


def test_blocks_with_adapters_are_left_as_they_are():
    """Their convolutions would be made again: an adapter's last layer keeps what comes after them."""
    pytest.importorskip("peft")
    net, ask, _ = song()
    denoiser = add_lora(X0Denoiser(net, EDM()), rank=2)
    counts = []
    for what in ("none", "norms"):
        CHECKPOINTING[what](denoiser.net)
        with Ledger() as ledger:
            ask(denoiser.net, torch.randn(2, 3, 8, 8), torch.rand(2)).sum().backward()
        counts.append(ledger.flops)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("network", ["song", "dhariwal"])
def test_without_norms_no_convolution_is_made_twice_and_less_is_kept(network):
    """Operations are those of the convolutions, to the last; what is kept is about half."""
    sizes = {"img_resolution": 16, "in_channels": 3, "out_channels": 3, "model_channels": 32, "channel_mult": (1, 2)}
    net = {"song": SongUNet, "dhariwal": DhariwalUNet}[network](**sizes, num_blocks=2, attn_resolutions=()).eval()
    counts = []
    for what in ("none", "norms"):
        CHECKPOINTING[what](net)
        with Ledger() as ledger:
            net(torch.randn(8, 3, 16, 16), torch.rand(8)).sum().backward()
        counts.append((ledger.flops, ledger.peak["activations"]))
        net.zero_grad()
    assert counts[0][0] == counts[1][0]
    assert 0.3 < counts[1][1] / counts[0][1] < 0.75
