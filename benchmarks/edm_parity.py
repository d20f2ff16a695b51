"""Our networks beside EDM's own code: the same random weights at full size, the largest relative difference.

python benchmarks/edm_parity.py PATH_TO_EDM [--only ADM] [--fixture tests/networks/edm.safetensors]

PATH_TO_EDM is a checkout of github.com/NVlabs/edm, whose torch_utils need the packages click and requests. With
--fixture it only writes the reference outputs of tests/networks/test_parity.py.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import runpy
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor, nn

from dmdistill.core.denoisers import EDMDenoiser
from dmdistill.core.schedules import EDM
from dmdistill.data.conditions import Labels
from dmdistill.networks.dhariwal_unet import DhariwalUNet
from dmdistill.networks.song_unet import SongUNet

SIGMAS = (0.002, 0.1, 1.0, 10.0, 80.0)
VP = {
    "model_type": "SongUNet",
    "embedding_type": "positional",
    "encoder_type": "standard",
    "decoder_type": "standard",
    "channel_mult_noise": 1,
    "resample_filter": [1, 1],
    "model_channels": 128,
    "augment_dim": 9,
}
VE = VP | {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
CIFAR = {"img_resolution": 32, "channel_mult": [2, 2, 2], "dropout": 0.13}
FACES = {"img_resolution": 64, "channel_mult": [1, 2, 2, 2], "dropout": 0.05}
ADM = {"model_type": "DhariwalUNet", "model_channels": 192, "channel_mult": [1, 2, 3, 4], "dropout": 0.1}
RELEASED = {  # FFHQ's and AFHQv2's networks differ only in dropout, which is for training
    "CIFAR-10 cond VP": VP | CIFAR | {"label_dim": 10},
    "CIFAR-10 cond VE": VE | CIFAR | {"label_dim": 10},
    "CIFAR-10 uncond VP": VP | CIFAR,
    "CIFAR-10 uncond VE": VE | CIFAR,
    "FFHQ-64, AFHQv2-64 VP": VP | FACES,
    "FFHQ-64, AFHQv2-64 VE": VE | FACES,
    "ImageNet-64 ADM": ADM | {"img_resolution": 64, "label_dim": 1000},
}
CLASSES = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}


def randomize(network: nn.Module, seed: int) -> None:
    """Give every weight a sizeable value, so that every branch contributes: fresh networks end branches in zeros."""
    rng = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        values = torch.randn(parameter.shape, generator=rng)
        if parameter.ndim > 1:
            parameter.data = values / math.sqrt(math.prod(parameter.shape[1:]))
        else:
            parameter.data = 0.2 * values + name.endswith("weight")  # norms around one, biases around zero


def pair(networks: Any, settings: dict[str, Any]) -> tuple[nn.Module, EDMDenoiser]:
    """EDM's preconditioned network with random weights, and ours with its state."""
    theirs = networks.EDMPrecond(img_channels=3, **settings).eval().requires_grad_(False)
    randomize(theirs.model, seed=1)
    arguments = {"in_channels": 3, "out_channels": 3} | settings
    ours = CLASSES[arguments.pop("model_type")](**arguments)
    ours.load_state_dict(theirs.model.state_dict())
    return theirs, EDMDenoiser(ours.eval().requires_grad_(False), EDM())


def difference(mine: Tensor, other: Tensor) -> float:
    return float((mine - other).abs().max() / other.abs().max())


def compare(networks: Any, settings: dict[str, Any]) -> tuple[list[float], list[float], int]:
    """Return relative differences of D(x; sigma) and of the networks' outputs, per sigma, and the parameter count."""
    theirs, ours = pair(networks, settings)
    outputs: dict[nn.Module, Tensor] = {}
    for network in (theirs.model, ours.net):
        network.register_forward_hook(lambda module, _, output: outputs.update({module: output}))
    rng, classes = torch.Generator().manual_seed(2), settings.get("label_dim", 0)
    one_hot = torch.eye(classes)[[1, classes - 2]] if classes else None
    denoised, raw = [], []
    for sigma in SIGMAS:
        size, t = settings["img_resolution"], torch.full((2,), sigma)
        x = 0.5 * torch.randn(2, 3, size, size, generator=rng) + sigma * torch.randn(2, 3, size, size, generator=rng)
        other = theirs(x, t, one_hot)
        denoised.append(difference(ours(x, t, Labels(one_hot) if one_hot is not None else None), other))
        raw.append(difference(outputs[ours.net], outputs[theirs.model]))
    return denoised, raw, sum(parameter.numel() for parameter in ours.parameters())


def write_fixture(networks: Any, file: Path) -> None:
    """Write the outputs of EDM's code with the weights of the test's formula."""
    test = runpy.run_path(str(Path(__file__).parent.parent / "tests" / "networks" / "test_parity.py"))
    outputs, states = {}, {}
    for variant, given in test["VARIANTS"].items():
        network = getattr(networks, given["model_type"])(**test["settings"](variant)).eval().requires_grad_(False)
        state = network.state_dict()
        states[variant] = {name: list(tensor.shape) for name, tensor in state.items()}
        for name, tensor in state.items():
            if not name.endswith("resample_filter"):
                tensor.copy_(test["weight"](name, tuple(tensor.shape)))
        outputs[variant] = network(*test["inputs"](variant))
    save_file(outputs, file, metadata={"states": json.dumps(states)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("edm", type=Path)
    parser.add_argument("--only", default="", help="models whose name holds this")
    parser.add_argument("--fixture", type=Path)
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.edm))
    networks = importlib.import_module("training.networks")
    if arguments.fixture:
        return write_fixture(networks, arguments.fixture)
    table = Table("model", "parameters", *(f"sigma {sigma:g}" for sigma in SIGMAS), "network only, worst")
    for name, settings in RELEASED.items():
        if arguments.only in name:
            denoised, raw, count = compare(networks, settings)
            table.add_row(name, f"{count / 1e6:.1f} M", *(f"{error:.1e}" for error in denoised), f"{max(raw):.1e}")
    Console(width=140).print(table)
    return None


if __name__ == "__main__":
    main()
