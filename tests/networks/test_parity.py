"""Tiny networks of every kind answer as EDM's own do, and load their state.

edm.safetensors holds what EDM's code answered, and names and shapes of its networks' states. It was made by
`python benchmarks/edm_parity.py PATH_TO_EDM --fixture tests/networks/edm.safetensors`. The weights themselves are a
formula of their names, the one below, on both sides.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from dmdistill.data.conditions import Labels
from dmdistill.networks.dhariwal_unet import DhariwalUNet
from dmdistill.networks.song_unet import SongUNet

FIXTURE = Path(__file__).with_name("edm.safetensors")
CLASSES = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
SIGMAS = (0.002, 0.1, 1.0, 10.0, 80.0)
SONG = {"model_type": "SongUNet", "model_channels": 16, "num_blocks": 1, "attn_resolutions": [4]}
NCSNPP = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "decoder_type": "standard",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
SKIP = {"encoder_type": "skip", "decoder_type": "skip"}
ADM = {"model_type": "DhariwalUNet", "num_blocks": 1}
VARIANTS = {
    "DDPM++ with labels": SONG | {"channel_mult": [2, 2, 2], "label_dim": 5, "augment_dim": 9},
    "DDPM++": SONG | {"channel_mult": [1, 2, 2, 2], "num_blocks": 2, "augment_dim": 9, "dropout": 0.05},
    "NCSN++ with labels": SONG | NCSNPP | {"channel_mult": [2, 2, 2], "label_dim": 5, "augment_dim": 9},
    "NCSN++": SONG | NCSNPP | {"channel_mult": [1, 2, 2, 2], "num_blocks": 2},
    "residual encoder, box filter": SONG | NCSNPP | {"channel_mult": [1, 3, 2], "resample_filter": [1, 1]},
    "skips at both ends": SONG | SKIP | {"channel_mult": [1, 2, 2], "label_dim": 5, "label_dropout": 0.5},
    "skips at both ends, long filter": SONG | NCSNPP | SKIP | {"channel_mult": [1, 2, 3], "channel_mult_emb": 2},
    "ADM with labels": ADM
    | {"model_channels": 64, "channel_mult": [1, 2], "attn_resolutions": [8, 4], "label_dim": 5, "augment_dim": 9},
    "ADM": ADM | {"model_channels": 32, "channel_mult": [1, 3, 2], "channel_mult_emb": 2, "attn_resolutions": [4]},
}


def settings(variant: str) -> dict[str, object]:
    """A variant's arguments, model_type apart."""
    given = {"img_resolution": 8, "in_channels": 3, "out_channels": 4, "label_dim": 0} | VARIANTS[variant]
    return {name: value for name, value in given.items() if name != "model_type"}


def uniform(name: str, shape: tuple[int, ...]) -> Tensor:
    """Of variance 1, the same for the same name everywhere."""
    numbers = np.frombuffer(random.Random(name).randbytes(4 * math.prod(shape)), dtype="<u4")
    return torch.from_numpy((numbers / 2.0**32 - 0.5) * math.sqrt(12)).float().reshape(shape)


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """Sizeable everywhere: a branch that starts at zero would hide what is in it."""
    values = uniform(name, shape)
    if name.endswith("freqs"):
        return 16 * values
    if len(shape) > 1:
        return values / math.sqrt(math.prod(shape[1:]))
    return 0.2 * values + name.endswith("weight")  # norms around one, biases around zero


def inputs(variant: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Two images at every sigma, what tells the network sigma, and one-hot labels."""
    count, classes = 2 * len(SIGMAS), int(VARIANTS[variant].get("label_dim", 0))
    noise = torch.tensor(SIGMAS).log().div(4).repeat_interleave(2)
    return uniform("x", (count, 3, 8, 8)), noise, torch.eye(classes)[torch.arange(count) % classes] if classes else None


def published(variant: str) -> dict[str, Tensor]:
    """The state of EDM's network, with the formula's weights and the filters in their places."""
    with safe_open(FIXTURE, "pt") as file:
        shapes = json.loads(file.metadata()["states"])[variant]
    taps = torch.tensor(VARIANTS[variant].get("resample_filter", [1, 1])).float()
    kernel = taps.outer(taps)[None, None] / taps.sum() ** 2
    return {
        name: kernel if name.endswith("resample_filter") else weight(name, tuple(shape))
        for name, shape in shapes.items()
    }


def build(variant: str) -> nn.Module:
    return CLASSES[VARIANTS[variant]["model_type"]](**settings(variant)).eval().requires_grad_(False)


@pytest.fixture(params=VARIANTS)
def variant(request) -> str:
    return request.param


def test_answers_are_those_of_edms_own_code(variant):
    net = build(variant)
    net.load_state_dict(published(variant))
    x, noise, labels = inputs(variant)
    with safe_open(FIXTURE, "pt") as file:
        expected = file.get_tensor(variant)
    found = net(x, noise, Labels(labels) if labels is not None else None)
    assert found.shape == (10, 4, 8, 8)
    assert expected.std() > 0.1
    for mine, theirs in zip(found.split(2), expected.split(2), strict=True):
        assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_names_are_those_of_edms_state_but_for_the_filters(variant):
    """Filters are settings here: a state without them, like one of ours, is whole."""
    theirs = {name: tuple(t.shape) for name, t in published(variant).items() if not name.endswith("resample_filter")}
    assert {name: tuple(t.shape) for name, t in build(variant).state_dict().items()} == theirs


@pytest.mark.parametrize("prefix", ["", "net."])
def test_the_filter_of_another_network_is_refused(prefix):
    """Also below another module, as a denoiser holds it."""
    whole = build("NCSN++") if not prefix else nn.ModuleDict({"net": build("NCSN++")})
    state = {prefix + name: tensor for name, tensor in published("NCSN++").items()}
    whole.load_state_dict(state)
    name = f"{prefix}dec.8x8_up.skip.resample_filter"
    with pytest.raises(RuntimeError, match=f"{name} is not the resample_filter that this network was built with"):
        whole.load_state_dict(state | {name: torch.full((1, 1, 2, 2), 0.25)})


def test_a_state_that_lacks_or_adds_something_is_refused():
    state = published("ADM")
    for wrong in (
        state | {"map_label.weight": torch.zeros(3)},
        {k: v for k, v in state.items() if "out_norm" not in k},
    ):
        with pytest.raises(RuntimeError, match=r"Unexpected key|Missing key"):
            build("ADM").load_state_dict(wrong)
