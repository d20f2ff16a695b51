"""The residual block: its attention, its skip, how it is told the noise level."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from dmdistill.networks.layers import group_norm
from dmdistill.networks.residual_block import UNetBlock, attention

NORM = partial(group_norm, group_channels=2)


def block(into, out, emb, **settings):
    """Random in every weight: fresh norms and biases hide mistakes."""
    torch.manual_seed(0)
    made = UNetBlock(into, out, emb_channels=emb, **({"norm": NORM} | settings))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.requires_grad_(False)


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("trains", [False, True])
def test_attention_is_the_plain_formula(trains, heads):
    """softmax(q k / sqrt c) v per head of c channels, where channel i's q, k and v are qkv's 3 i, 3 i + 1, 3 i + 2."""
    made, x = block(6, 6, 4, attends=True, heads=heads).requires_grad_(trains), torch.randn(2, 6, 3, 5)
    qkv = made.qkv(made.norm2(x)).flatten(2)
    parts = []
    for q, k, v in zip(*(qkv[:, i::3].chunk(heads, dim=1) for i in range(3)), strict=True):
        share = (torch.einsum("bcq,bck->bqk", q, k) / math.sqrt(6 / heads)).softmax(2)
        parts.append(torch.einsum("bqk,bck->bcq", share, v))
    torch.testing.assert_close(made.attend(x), made.proj(torch.cat(parts, dim=1).reshape(x.shape)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("positions", [49, 256, 257])
def test_attention_in_training_is_torchs_within_rounding(positions, dtype):
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, positions, 8, dtype=dtype, requires_grad=True) for _ in range(3)]
    weight = torch.randn(2, 3, positions, 8, dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    found, expected = attention(*inputs), F.scaled_dot_product_attention(*exact)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    mine = [found, *torch.autograd.grad(found, inputs, weight)]
    theirs = [expected, *torch.autograd.grad(expected, exact, weight.double())]
    for one, other in zip(mine, theirs, strict=True):
        assert (one - other).norm() < tolerance * other.norm()


@pytest.mark.parametrize(("channels", "heads"), [(32, 0), (64, 1), (100, 1), (192, 3), (576, 9)])
def test_a_head_per_64_channels_unless_told(channels, heads):
    made = UNetBlock(channels, channels, emb_channels=4, attends=True)
    assert (made.heads, hasattr(made, "qkv")) == (heads, heads > 0)


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="3 heads over 193 channels"):
        UNetBlock(193, 193, emb_channels=4, attends=True)


@pytest.mark.parametrize("adaptive", [True, False])
def test_a_block_without_its_branch_is_its_skip(adaptive):
    made = block(6, 6, 4, attends=True, heads=1, skip_scale=0.5, adaptive_scale=adaptive)
    for layer in (made.conv1, made.proj):
        for parameter in layer.parameters():
            parameter.zero_()
    x = torch.randn(2, 6, 3, 5)
    torch.testing.assert_close(made(x, torch.randn(2, 4)), x / 4)


def test_the_noise_level_scales_and_shifts_the_second_norm():
    made, h, emb = block(4, 6, 5), torch.randn(2, 6, 3, 5), torch.randn(2, 12, 1, 1)
    torch.testing.assert_close(made.condition(h, emb), made.norm1(h) * (1 + emb[:, :6]) + emb[:, 6:])


def test_the_noise_level_is_added_before_the_second_norm():
    made, h, emb = block(4, 6, 5, adaptive_scale=False), torch.randn(2, 6, 3, 5), torch.randn(2, 6, 1, 1)
    torch.testing.assert_close(made.condition(h.clone(), emb), made.norm1(h + emb))


@pytest.mark.parametrize(("project", "weights"), [(True, True), (False, False)])
def test_only_some_project_what_they_resample(project, weights):
    names = dict(block(6, 6, 4, resample="down", project_resampled=project).named_parameters())
    assert ("skip.weight" in names) == weights


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
@pytest.mark.parametrize("resample", [None, "down", "up"])
@pytest.mark.parametrize("adaptive", [True, False])
def test_gradients_are_those_of_finite_differences(resample, adaptive, taps):
    settings = {"resample_filter": taps, "adaptive_scale": adaptive, "skip_scale": 0.7}
    made = block(4, 6, 5, attends=True, heads=2, resample=resample, **settings).double().requires_grad_(True)
    x = torch.randn(1, 4, 2, 4, dtype=torch.float64, requires_grad=True)
    emb = torch.randn(1, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(made, (x, emb), fast_mode=True)


def test_dropout_is_of_training_alone():
    made = block(6, 4, 5, dropout=0.5)
    x, emb = torch.randn(2, 6, 3, 5), torch.randn(2, 5)
    made.eval()
    assert torch.equal(made(x, emb), made(x, emb))
    made.train()
    assert not torch.equal(made(x, emb), made(x, emb))
