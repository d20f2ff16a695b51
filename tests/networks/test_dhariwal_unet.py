"""ADM: its fresh weights, its labels, its dtypes. That it answers as EDM's does is in test_parity."""

import pytest
import torch

from dmdistill.data.conditions import Labels
from dmdistill.networks.dhariwal_unet import DhariwalUNet


def build(**changes):
    torch.manual_seed(0)
    settings = {
        "img_resolution": 12,
        "in_channels": 3,
        "out_channels": 5,
        "label_dim": 7,
        "model_channels": 32,
        "channel_mult": (1, 2),
        "num_blocks": 1,
        "attn_resolutions": (6,),
        "dropout": 0.0,
    }
    return DhariwalUNet(**(settings | changes))


def stirred(net):
    """Random in every weight: fresh ones answer with nothing."""
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return net


def asked(net, *, count=2):
    rng = torch.Generator().manual_seed(4)
    x, noise = torch.randn(count, 3, 12, 20, generator=rng), torch.randn(count, generator=rng)
    return net(x, noise, Labels(torch.eye(7)[torch.arange(count)]) if net.label_dim else None)


@pytest.mark.parametrize("label_dim", [0, 7])
def test_output_has_the_images_shape(label_dim):
    assert asked(stirred(build(label_dim=label_dim))).shape == (2, 5, 12, 20)


def test_a_fresh_network_answers_with_nothing():
    """So that EDM's preconditioning starts from mu = c_skip x_t."""
    assert not asked(build()).any()


def test_fresh_labels_have_unit_variance_and_the_rest_pytorchs_bounds():
    net = build().requires_grad_(False)
    assert net.map_label is not None
    assert net.map_label.weight.std() == pytest.approx(1, rel=0.1)
    conv = net.enc["6x6_block0"].conv0
    bound = (9 * 32) ** -0.5
    assert 0.98 * bound < conv.weight.abs().max() <= bound


def test_every_parameter_is_used_but_those_of_augmentation():
    net = stirred(build(augment_dim=9))
    asked(net).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == ["map_augment.weight"]


@pytest.mark.parametrize(
    ("label_dim", "cond", "given"),
    [(7, None, 0), (7, Labels(torch.zeros(2, 6)), 6), (0, Labels(torch.zeros(2, 7)), 7)],
)
def test_labels_given_or_lacking_wrongly_are_refused(label_dim, cond, given):
    with pytest.raises(ValueError, match=f"labels of {given} classes, this network was built for {label_dim}"):
        build(label_dim=label_dim)(torch.randn(2, 3, 12, 12), torch.randn(2), cond)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img_resolution": 13}, "cannot be halved 1 times"),
        ({"channel_mult": ()}, "0 levels of channel_mult"),
        ({"num_blocks": 0}, "num_blocks 0: expected at least 1"),
        ({"model_channels": 7}, "model_channels 7, expected an even number from 4"),
    ],
)
def test_sizes_that_make_no_network_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_bf16_and_channels_last_change_little():
    net = stirred(build()).requires_grad_(False)
    usual = asked(net)
    torch.testing.assert_close(asked(net.to(memory_format=torch.channels_last)), usual, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = asked(net)
    assert 0 < (rounded - usual).abs().max() < 0.05 * usual.abs().max()
