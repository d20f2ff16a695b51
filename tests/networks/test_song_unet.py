"""The U-Net: its names are EDM's, its shapes and its attention what they should be."""

import copy

import pytest
import torch

from dmdistill.data.conditions import Labels, LabelSpace
from dmdistill.data.training_set import AugmentedLabels
from dmdistill.networks.song_unet import SongUNet

SPACE = LabelSpace(tuple("abcdefg"))


def build(**changes):
    torch.manual_seed(0)
    settings = {
        "img_resolution": 12,
        "in_channels": 3,
        "out_channels": 5,
        "label_dim": 7,
        "model_channels": 16,
        "channel_mult": (1, 2, 3),
        "num_blocks": 1,
        "attn_resolutions": (6,),
        "dropout": 0.0,
    }
    return SongUNet(**(settings | changes))


def stirred(net):
    """Random in every weight: fresh ones answer with next to nothing."""
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return net.requires_grad_(False)


def asked(net, count=2, *, channels=3, size=12, labels=True):
    rng = torch.Generator().manual_seed(4)
    x = torch.randn(count, channels, size, size, generator=rng)
    noise = torch.randn(count, generator=rng)
    return net(x, noise, SPACE.select(torch.randint(len(SPACE), (count,), generator=rng)) if labels else None)


@pytest.mark.parametrize(
    ("changes", "channels", "size"),
    [
        ({}, 3, 12),
        ({"patch_size": 2, "channel_mult": (1, 2)}, 3, 12),
        ({"in_channels": 1, "out_channels": 4, "channel_mult": (2,), "num_blocks": 2}, 1, 7),
        ({"img_resolution": 24, "patch_size": 2, "attn_resolutions": (12, 3)}, 3, 24),
    ],
)
def test_output_has_the_images_shape(changes, channels, size):
    """Batch, channels in and out and size all differ."""
    net = build(**({"img_resolution": size} | changes))
    assert asked(net, channels=channels, size=size).shape == (2, changes.get("out_channels", 5), size, size)


def test_images_need_not_be_square():
    net = stirred(build())
    x, noise = torch.randn(2, 3, 8, 20), torch.randn(2)
    assert net(x, noise, SPACE.select(torch.tensor([1, 2]))).shape == (2, 5, 8, 20)


def test_a_fresh_network_answers_with_next_to_nothing():
    """So that EDM's preconditioning starts from mu = c_skip x_t."""
    assert asked(build()).abs().max() < 1e-3


def test_memory_format_changes_nothing():
    net = stirred(build(patch_size=2, channel_mult=(1, 2)))
    usual = asked(net)
    last = asked(copy.deepcopy(net).to(memory_format=torch.channels_last))
    assert usual.abs().mean() > 0.01
    torch.testing.assert_close(last, usual, rtol=1e-4, atol=1e-4)


def test_samples_do_not_see_one_another():
    net = stirred(build())
    x, noise, cond = torch.randn(4, 3, 12, 12), torch.randn(4), SPACE.select(torch.tensor([0, 3, 6, 1]))
    alone = [net(x[i : i + 1], noise[i : i + 1], cond[slice(i, i + 1)]) for i in range(4)]
    torch.testing.assert_close(torch.cat(alone), net(x, noise, cond), rtol=1e-4, atol=1e-4)


def test_label_and_noise_level_change_the_answer():
    net = stirred(build())
    x = torch.randn(1, 3, 12, 12)

    def answer(noise, index):
        cond = SPACE.select(torch.tensor([index])) if index is not None else Labels(torch.zeros(1, 7))
        return net(x, torch.tensor([noise]), cond)

    answers = [answer(0.1, 2), answer(0.1, 3), answer(0.1, None), answer(0.9, 2)]
    for i, mine in enumerate(answers):
        assert all((mine - other).abs().max() > 1e-3 for other in answers[i + 1 :])


@pytest.mark.parametrize(
    ("label_dim", "cond", "given"),
    [(7, None, 0), (7, Labels(torch.zeros(2, 6)), 6), (0, Labels(torch.zeros(2, 7)), 7)],
)
def test_labels_given_or_lacking_wrongly_are_refused(label_dim, cond, given):
    net = build(label_dim=label_dim)
    with pytest.raises(ValueError, match=f"labels of {given} classes, this network was built for {label_dim}"):
        net(torch.randn(2, 3, 12, 12), torch.randn(2), cond)


def test_an_unconditional_network_takes_no_labels():
    assert asked(build(label_dim=0), labels=False).shape == (2, 5, 12, 12)


def edm_names():
    """Names and shapes of EDM's published SongUNet (DDPM++) for 28 pixels, channel_mult [1, 2], num_blocks 2,
    attention at 14 and model_channels 32, written out from its construction.
    """
    shapes = {}

    def layer(name, out, into, kernel=None):
        shapes[f"{name}.weight"] = (out, into) + ((kernel, kernel) if kernel else ())
        shapes[f"{name}.bias"] = (out,)

    def norm(name, channels):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (channels,)

    def block(name, into, out, *, attention=False, resample=False):
        norm(f"{name}.norm0", into)
        layer(f"{name}.conv0", out, into, 3)
        layer(f"{name}.affine", out, 128)
        norm(f"{name}.norm1", out)
        layer(f"{name}.conv1", out, out, 3)
        if into != out or resample:
            layer(f"{name}.skip", out, into, 1)
        if attention:
            norm(f"{name}.norm2", out)
            layer(f"{name}.qkv", 3 * out, out, 1)
            layer(f"{name}.proj", out, out, 1)

    layer("map_label", 32, 7)
    layer("map_layer0", 128, 32)
    layer("map_layer1", 128, 128)
    layer("enc.28x28_conv", 32, 3, 3)
    block("enc.28x28_block0", 32, 32)
    block("enc.28x28_block1", 32, 32)
    block("enc.14x14_down", 32, 32, resample=True)
    block("enc.14x14_block0", 32, 64, attention=True)
    block("enc.14x14_block1", 64, 64, attention=True)
    block("dec.14x14_in0", 64, 64, attention=True)
    block("dec.14x14_in1", 64, 64)
    block("dec.14x14_block0", 64 + 64, 64)
    block("dec.14x14_block1", 64 + 64, 64)
    block("dec.14x14_block2", 64 + 32, 64, attention=True)
    block("dec.28x28_up", 64, 64, resample=True)
    block("dec.28x28_block0", 64 + 32, 32)
    block("dec.28x28_block1", 32 + 32, 32)
    block("dec.28x28_block2", 32 + 32, 32)
    norm("dec.28x28_aux_norm", 32)
    layer("dec.28x28_aux_conv", 5, 32, 3)
    return shapes


def test_names_and_shapes_are_those_of_edms_checkpoints():
    net = build(img_resolution=28, model_channels=32, channel_mult=(1, 2), num_blocks=2, attn_resolutions=(14,))
    assert {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()} == edm_names()


def test_every_parameter_is_used():
    net = build()
    asked(net).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding_type": "sine"}, "embedding_type 'sine': expected one of positional, fourier"),
        ({"encoder_type": "residuals"}, "encoder_type 'residuals': expected one of standard, skip, residual"),
        ({"decoder_type": "residual"}, "decoder_type 'residual': expected one of standard, skip"),
        ({"resample_filter": (1, 2, 1)}, r"resample_filter \[1, 2, 1\]"),
        ({"img_resolution": 14}, "14 x 14 in patches of 1: cannot be halved 2 times"),
        ({"patch_size": 5}, "12 x 12 in patches of 5"),
        ({"patch_size": 0}, "patch_size 0"),
        ({"num_blocks": 0}, "num_blocks 0"),
    ],
)
def test_settings_that_make_no_network_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_labels_are_forgotten_in_training_alone():
    net = build(label_dropout=0.5)
    cond = Labels(torch.eye(7).repeat(300, 1))
    kept = net.labels(cond).sum(1)
    assert set(kept.tolist()) == {0.0, 1.0}
    assert kept.mean() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(net.eval().labels(cond), cond.one_hot)


def test_weights_of_augmentation_are_kept_and_unheard():
    net = stirred(build(augment_dim=9))
    assert net.state_dict()["map_augment.weight"].shape == (16, 9)
    before = asked(net)
    net.map_augment.weight.add_(1)
    assert torch.equal(asked(net), before)


def test_augmentation_is_heard_where_it_is_told():
    net = stirred(build(augment_dim=9))
    x, noise, labels = torch.randn(2, 3, 12, 12), torch.randn(2), SPACE.select(torch.tensor([1, 2])).one_hot
    plain, zeros = net(x, noise, Labels(labels)), net(x, noise, AugmentedLabels(labels, torch.zeros(2, 9)))
    assert torch.equal(plain, zeros)
    told = torch.zeros(2, 9)
    told[1, 4] = 0.7
    heard = net(x, noise, AugmentedLabels(labels, told))
    assert torch.equal(heard[0], plain[0])
    assert (heard[1] - plain[1]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="9 augmentation labels, this network was built for 0"):
        build()(x, noise, AugmentedLabels(labels, told))


@pytest.mark.parametrize("encoder", ["standard", "residual", "skip"])
@pytest.mark.parametrize("decoder", ["standard", "skip"])
def test_every_part_of_every_architecture_learns(encoder, decoder):
    net = stirred(build(encoder_type=encoder, decoder_type=decoder, embedding_type="fourier")).requires_grad_(True)
    asked(net).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
