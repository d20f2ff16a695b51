"""Discriminator heads, layer by layer, and the features of every kind of network."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dmdistill.data.conditions import Labels
from dmdistill.models.discriminator import add_head
from dmdistill.networks.activation_checkpointing import CHECKPOINTING
from dmdistill.networks.dhariwal_unet import DhariwalUNet
from dmdistill.networks.discriminator import (
    ChannelMean,
    ConvolutionHead,
    TokenHead,
    build_head,
    capture_features,
    feature_layers,
)
from dmdistill.networks.song_unet import SongUNet
from helpers import tiny_models
from helpers.small_denoisers import large_features

SMALL = {"img_resolution": 8, "in_channels": 3, "out_channels": 3, "model_channels": 16, "num_blocks": 1}


def describe(head):
    """Each layer as its name and its numbers."""
    for layer in head:
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None
            yield "conv", layer.in_channels, layer.out_channels, *layer.kernel_size, layer.stride[0], layer.padding[0]
        elif isinstance(layer, nn.GroupNorm):
            assert layer.affine
            yield "norm", layer.num_groups, layer.num_channels
        else:
            yield (type(layer).__name__,)


@pytest.mark.parametrize(("channels", "size", "halvings"), [(768, 8, 1), (1280, 8, 1), (1280, 32, 3)])
def test_heads_are_those_of_dmd2(channels, size, halvings):
    """ImageNet 64, SD1.5 and SDXL: halved to 4 x 4, then to one number (tianweiy/DMD2 at 8d8fa55)."""
    with torch.device("meta"):
        head = ConvolutionHead(channels, (size, size))
    after = [("norm", 32, channels), ("SiLU",)]
    half, last = ("conv", channels, channels, 4, 4, 2, 1), ("conv", channels, channels, 4, 4, 4, 0)
    expected = [*[half, *after] * halvings, last, *after, ("conv", channels, 1, 1, 1, 1, 0)]
    assert list(describe(head)) == expected
    assert head(torch.empty(3, channels, size, size, device="meta")).shape == (3, 1, 1, 1)


@pytest.mark.parametrize("channels", [8, 16, 24, 32, 48, 64, 100, 256])
@pytest.mark.parametrize("size", [(4, 4), (7, 7), (8, 4), (2, 3)])
def test_a_small_networks_head_tells_images_apart(channels, size):
    """No group of the last norm holds a single number, which the norm would make zero whatever the image."""
    torch.manual_seed(0)
    head, features = ConvolutionHead(channels, size), torch.randn(5, channels, *size, requires_grad=True)
    logits = head(features)
    assert logits.shape == (5, 1, 1, 1)
    assert logits.std() > 1e-2
    (gradient,) = torch.autograd.grad(logits.sum(), features)
    assert gradient.flatten(1).abs().amax(1).min() > 1e-6


def test_one_head_a_layer_each_of_its_kind():
    features = [torch.randn(3, 16, 8, 8), torch.randn(3, 10, 12), torch.randn(3, 32, 4, 4)]
    head = build_head(features)
    assert [type(one) for one in head.heads] == [ConvolutionHead, TokenHead, ConvolutionHead]
    logits = head(features)
    assert logits.shape == (3, 3)
    assert torch.equal(logits[:, 1:2], head.heads[1](features[1]))
    assert torch.equal(logits[:, 2:], head.heads[2](features[2]).flatten(1))


def test_sidas_head_is_the_mean_over_channels():
    head, features = build_head([torch.randn(3, 16, 4, 5)], "mean"), [torch.randn(2, 16, 4, 5)]
    assert list(head.parameters()) == []
    assert torch.equal(head(features), features[0].mean(1).flatten(1))
    assert torch.equal(ChannelMean()(features[0]), features[0].mean(1, keepdim=True))


def test_a_head_computes_in_fp32_under_autocast():
    features = large_features(8).float()
    head = build_head([features])
    with torch.autocast("cpu", torch.bfloat16):
        logits = head([features.bfloat16()])
    assert torch.equal(logits, head([features.bfloat16().float()]))


class Prompts:
    """Embeddings of prompts by name."""

    def __init__(self, **tensors):
        self.tensors = tensors


def song():
    return SongUNet(**SMALL, channel_mult=(1, 2)), None, (3, 8, 8)


def ncsnpp():
    extra = {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2}
    return SongUNet(**SMALL, **extra, channel_mult=(1, 2), resample_filter=(1, 3, 3, 1)), None, (3, 8, 8)


def dhariwal():
    return DhariwalUNet(**SMALL, channel_mult=(1, 2), label_dim=4), Labels(torch.eye(4)[[1, 3]]), (3, 8, 8)


def unet2d():
    pytest.importorskip("diffusers")
    from dmdistill.networks.diffusers_wrappers import UNet2D

    return UNet2D(tiny_models.unet2d_network()), None, (3, 8, 8)


def unet2d_condition():
    from dmdistill.networks.diffusers_wrappers import UNet2DCondition
    from helpers import tiny_pipelines

    pytest.importorskip("diffusers")
    network = tiny_pipelines.unet(cross_attention_dim=12)
    return UNet2DCondition(network), Prompts(prompt_embeds=torch.randn(2, 6, 12)), (4, 8, 8)


def dit():
    diffusers = pytest.importorskip("diffusers")
    from dmdistill.networks.diffusers_wrappers import DiT

    sizes = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 3, "norm_num_groups": 1}
    network = diffusers.DiTTransformer2DModel(
        **sizes, in_channels=4, out_channels=8, sample_size=8, num_embeds_ada_norm=5
    )
    return DiT(network), Labels(torch.eye(5)[[1, 3]]), (4, 8, 8)


def sd3():
    diffusers = pytest.importorskip("diffusers")
    from dmdistill.networks.diffusers_wrappers import StableDiffusion3

    sizes = {"attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16, "num_layers": 3}
    dims = {"joint_attention_dim": 32, "pooled_projection_dim": 24, "pos_embed_max_size": 8, "sample_size": 8}
    network = diffusers.SD3Transformer2DModel(**sizes, **dims, patch_size=2, in_channels=4, out_channels=4)
    prompts = {"prompt_embeds": torch.randn(2, 6, 32), "pooled_prompt_embeds": torch.randn(2, 24)}
    return StableDiffusion3(network), Prompts(**prompts), (4, 8, 8)


def flux():
    diffusers = pytest.importorskip("diffusers")
    from dmdistill.networks.diffusers_wrappers import Flux

    sizes = {"attention_head_dim": 16, "num_attention_heads": 2, "num_layers": 3, "num_single_layers": 1}
    dims = {"joint_attention_dim": 32, "pooled_projection_dim": 12, "axes_dims_rope": [4, 4, 8]}
    network = diffusers.FluxTransformer2DModel(**sizes, **dims, patch_size=1, in_channels=16)
    prompts = {"prompt_embeds": torch.randn(2, 6, 32), "pooled_prompt_embeds": torch.randn(2, 12)}
    return Flux(network), Prompts(**prompts), (4, 8, 8)


KINDS = [song, ncsnpp, dhariwal, unet2d, unet2d_condition, dit, sd3, flux]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def case(request):
    """A network random in every weight, and what to ask it: (x, t, cond)."""
    torch.manual_seed(0)
    net, cond, shape = request.param()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net.eval(), (torch.randn(2, *shape, requires_grad=True), torch.rand(2), cond)


def hooks(net):
    return sum(len(module._forward_hooks) for module in net.modules())


def full_features(net, layers, inputs):
    """The layers' outputs of a full pass, by hooks of the test's own."""
    outputs = {}
    handles = [
        net.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: outputs.update(
                {name: output[-1] if isinstance(output, tuple) else output}
            )
        )
        for name in layers
    ]
    net(*inputs)
    for handle in handles:
        handle.remove()
    return [outputs[name] for name in layers]


def gradients(features, net, x):
    """Of a sum of squares, in the input and in every parameter that has one."""
    total = sum(one.float().square().sum() for one in features)
    return torch.autograd.grad(total, [x, *net.parameters()], allow_unused=True)


def same(ones, others):
    return all((a is None and b is None) or torch.equal(a, b) for a, b in zip(ones, others, strict=True))


def test_features_are_those_of_a_full_pass(case):
    """Their gradients, too; and those of the layers that come later are never asked for."""
    net, inputs = case
    layers = feature_layers(net)
    expected, output = full_features(net, layers, inputs), net(*inputs)
    features = capture_features(net, layers, lambda: net(*inputs))
    assert [one.shape[0] for one in features] == [2]
    assert same(features, expected)
    assert same(gradients(features, net, inputs[0]), gradients(expected, net, inputs[0]))
    assert hooks(net) == 0
    assert torch.equal(net(*inputs), output)  # nothing of the pass that was cut short stays behind


def test_features_depend_on_the_image(case):
    net, (x, t, cond) = case
    layers = feature_layers(net)
    (one,), (other,) = (
        capture_features(net, layers, lambda images=images: net(images, t, cond)) for images in (x, x.flip(0) + 0.5)
    )
    assert (one - other).abs().mean() > 1e-4


def test_features_without_a_graph(case):
    net, inputs = case
    layers = feature_layers(net)
    with torch.no_grad():
        features = capture_features(net, layers, lambda: net(*inputs))
    assert not any(one.requires_grad for one in features)
    assert same([one.detach() for one in full_features(net, layers, inputs)], features)


@pytest.mark.parametrize("what", ["norms", "blocks"])
def test_features_with_activation_checkpointing(case, what):
    """The same features and gradients; and a whole pass afterwards has its own."""
    net, inputs = case
    layers, plain = feature_layers(net), copy.deepcopy(net)
    expected = full_features(plain, layers, inputs)
    CHECKPOINTING[what](net)
    features = capture_features(net, layers, lambda: net(*inputs))
    assert same(features, expected)
    assert same(gradients(features, net, inputs[0]), gradients(expected, plain, inputs[0]))
    assert same(gradients([net(*inputs)], net, inputs[0]), gradients([plain(*inputs)], plain, inputs[0]))
    assert hooks(net) == 0


def test_hooks_go_where_the_network_fails(case):
    net, _ = case

    def fail():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        capture_features(net, feature_layers(net), fail)
    assert hooks(net) == 0


def test_features_of_several_layers_come_in_the_order_asked_for():
    torch.manual_seed(0)
    net, cond, shape = song()
    net, inputs = net.eval(), (torch.randn(2, *shape), torch.rand(2), cond)
    layers = [*feature_layers(net), f"enc.{next(iter(net.enc))}"]
    features = capture_features(net, layers, lambda: net(*inputs))
    assert same(features, full_features(net, layers, inputs))
    assert features[0].shape != features[1].shape


@pytest.mark.slow
def test_features_of_a_compiled_network():
    """It is asked without its compiled code, which has no layers; afterwards it runs compiled as before."""
    torch.manual_seed(0)
    net, cond, shape = song()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    net.eval()
    inputs = torch.randn(2, *shape), torch.rand(2), cond
    expected = full_features(net, feature_layers(net), inputs)
    net.compile(backend="eager")
    output = net(*inputs)
    for _ in range(2):
        features = capture_features(net, feature_layers(net), lambda: net(*inputs))
        assert same(features, expected)
    assert torch.equal(net(*inputs), output)
    assert hooks(net) == 0


def test_a_network_that_names_no_layers_is_refused():
    with pytest.raises(ValueError, match="Linear"):
        feature_layers(nn.Linear(2, 2))


@pytest.mark.parametrize(("name", "named"), [("foo", "enc.8x8_conv"), ("8x8_block0", "enc.8x8_block0")])
def test_an_unknown_layer_is_refused_with_those_that_there_are(name, named):
    network = SongUNet(**SMALL, channel_mult=[1])
    with pytest.raises(ValueError, match=f"--discriminator-layers {name}: .* such as .*{named}"):
        add_head(SimpleNamespace(net=network), torch.zeros(1, 3, 8, 8), None, layers=[name])
