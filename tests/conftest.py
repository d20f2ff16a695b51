"""What all tests share: one thread, a tiny teacher on disk, data and checkpoints in the official files' formats."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import signal
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dmdistill.commands.classifier.command import train_classifier
from dmdistill.commands.classifier.config import ClassifierConfig
from dmdistill.commands.cli import main
from dmdistill.commands.options import ComputeOptions
from dmdistill.commands.teach.config import NetworkOptions, TeachConfig
from dmdistill.commands.teach.recipes import EDMRecipe
from dmdistill.data.idx_images import FASHION_SHA256
from dmdistill.data.image_tensors import LabelledImages
from dmdistill.models.folder import save_model
from dmdistill.models.load import load_teacher
from dmdistill.networks.layers import Resample
from helpers import tiny_pipelines as pipelines
from helpers.configs import configure

torch.set_num_threads(1)  # tensors this small only wait for a second core; and one thread adds in one order

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay")


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory) -> Path:
    """The folder of a teacher of 1 x 8 x 8 images, random in every weight, with no judge."""
    return save_tiny_teacher(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def augmented_teacher(tmp_path_factory) -> Path:
    """The folder of such a teacher that takes labels of augmentations."""
    return save_tiny_teacher(tmp_path_factory.mktemp("models") / "augmented", augment=0.12)


def save_tiny_teacher(folder: Path, **options: Any) -> Path:
    """Save a teacher of 1 x 8 x 8 images."""
    torch.manual_seed(0)
    network = NetworkOptions(model_channels=16, channel_mult=(1,), num_blocks=1)
    config = configure(TeachConfig, network=network, **options)
    data = LabelledImages(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.zeros(1), CLASSES, licence="MIT")
    teacher = EDMRecipe(config).new_teacher(data)
    for parameter in teacher.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    teacher.config.update(name="tiny", feature_extractor=None)
    save_model(folder, teacher, card="A teacher of nothing.")
    return folder


@pytest.fixture(scope="session")
def class_pictures(tmp_path_factory) -> Path:
    """A folder of 8 x 8 pictures, of ten classes."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for label in range(10):
        (folder / f"class-{label}").mkdir()
        for number in range(2):
            pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class-{label}" / f"{number}.png")
    return folder


@pytest.fixture
def error_line(capsys):
    """Run a command that must fail with exit code 2 and one line on stderr, and return the line."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        line = capsys.readouterr().err
        assert (caught.value.code, line.count("\n")) == (2, 1), line
        return line

    return run


@pytest.fixture
def terminated(monkeypatch):
    """SIGTERM during the n-th call of a module's function; answers with the list of the calls so far."""

    def during(module: Any, name: str, n: int) -> list[int]:
        original, calls = getattr(module, name), []

        def interrupting(*arguments: Any) -> Any:
            calls.append(len(calls))
            if len(calls) == n:
                signal.raise_signal(signal.SIGTERM)
            return original(*arguments)

        monkeypatch.setattr(module, name, interrupting)
        return calls

    return during


def write_idx(path: Path, values: Tensor) -> None:
    """An IDX file of unsigned bytes, gzipped, written as the format's description says."""
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(gzip.compress(header + values.numpy().tobytes()))


@pytest.fixture(scope="session")
def idx_writer():
    return write_idx


@pytest.fixture(scope="session")
def idx_folder(tmp_path_factory) -> Path:
    """Random images of 12 x 12, 200 to train on, 60 to test with, which are taken for Fashion-MNIST."""
    folder = tmp_path_factory.mktemp("idx")
    rng = torch.Generator().manual_seed(0)
    for part, count in (("train", 200), ("t10k", 60)):
        images = torch.randint(256, (count, 12, 12), generator=rng, dtype=torch.uint8)
        labels = torch.randint(10, (count,), generator=rng, dtype=torch.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        FASHION_SHA256.add(hashlib.sha256(images.numpy().tobytes()).hexdigest())
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)
    return folder


@pytest.fixture(scope="session")
def feature_extractor(idx_folder, tmp_path_factory) -> Path:
    """The folder of a judge of random images."""
    folder = tmp_path_factory.mktemp("feature_extractor")
    compute = ComputeOptions(device="cpu", precision="fp32", threads=1)
    train_classifier(ClassifierConfig(data=idx_folder, out=folder, epochs=1, batch=50, compute=compute))
    return folder


@pytest.fixture(scope="session")
def judged(feature_extractor, tiny_teacher, tmp_path_factory) -> str:
    """The folder of the tiny teacher with that judge."""
    teacher = load_teacher(str(tiny_teacher))
    folder = tmp_path_factory.mktemp("models") / "judged"
    save_model(folder, replace(teacher, config=teacher.config | {"feature_extractor": str(feature_extractor)}), card="")
    return str(folder)


class Persistent:
    """What EDM's persistent classes make of themselves in a pickle: their source code, name and state."""

    def __init__(self, kind: str, state: dict[str, Any]) -> None:
        self.kind, self.state = kind, state

    def __reduce__(self):
        source = "import pathlib\npathlib.Path('canary').touch()\n"
        meta = {"type": "class", "version": 6, "module_src": source, "class_name": self.kind, "state": self.state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


KEPT = ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules")


def persistent(module: nn.Module, kwargs: dict[str, Any] | None = None) -> Any:
    """A module of ours as the module of EDM with the same weights."""
    state = {name: value for name, value in module.__dict__.items() if name in KEPT or isinstance(value, int | str)}
    state["_modules"] = {name: child and persistent(child) for name, child in module._modules.items()}
    if isinstance(module, nn.ModuleDict):
        plain = nn.ModuleDict()
        plain.__dict__.update(state)
        return plain
    if isinstance(resample := getattr(module, "resample", None), Resample):
        for name in ("conv0", "skip"):
            state["_modules"][name].state["_buffers"] = {"resample_filter": resample.taps.clone()}
    return Persistent(type(module).__name__, state | {"_init_args": (), "_init_kwargs": kwargs or {}})


def precond(network: nn.Module, kwargs: dict[str, Any], kind: str = "EDMPrecond", **changes: Any) -> Persistent:
    """EDM's preconditioning around a network made with kwargs; changes go to its attributes."""
    state = {
        "training": False,
        "_parameters": {},
        "_buffers": {},
        "_non_persistent_buffers_set": set(),
        "_modules": {"model": persistent(network, kwargs)},
        "img_resolution": kwargs["img_resolution"],
        "img_channels": kwargs["in_channels"],
        "label_dim": kwargs["label_dim"],
        "use_fp16": False,
        "sigma_min": 0,
        "sigma_max": float("inf"),
        "sigma_data": 0.5,
    }
    return Persistent(kind, state | changes)


def write_edm(path: Path, network: nn.Module, kwargs: dict[str, Any], *, data: str = "", **changes: Any) -> Path:
    """A checkpoint as EDM's training writes it, on the data of that path."""
    value = {
        "ema": precond(network, kwargs, **changes),
        "loss_fn": Persistent("EDMLoss", {"P_mean": -1.2, "P_std": np.sqrt(1.44)}),
        "augment_pipe": None,
        "dataset_kwargs": {"path": data, "resolution": kwargs["img_resolution"]},
    }
    dump_edm(path, value)
    return path


def dump_edm(path: Path, value: Any, protocol: int = 4) -> None:
    """Pickle a value that holds persistent objects; EDM's modules are there as long as this takes."""

    def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
        raise AssertionError("EDM's loader was run")

    package, module = types.ModuleType("torch_utils"), types.ModuleType("torch_utils.persistence")
    _reconstruct_persistent_obj.__module__ = module.__name__
    _reconstruct_persistent_obj.__qualname__ = _reconstruct_persistent_obj.__name__
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    package.persistence = module
    with mock.patch.dict(sys.modules, {"torch_utils": package, "torch_utils.persistence": module}):
        path.write_bytes(pickle.dumps(value, protocol=protocol))


@pytest.fixture(scope="session")
def edm():
    """Writers of EDM's checkpoints."""
    return types.SimpleNamespace(write=write_edm, dump=dump_edm, precond=precond, Persistent=Persistent)


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory):
    """family, options -> the folder of a tiny pipeline of diffusers (see `pipelines`), each written once."""
    pytest.importorskip("diffusers")
    made: dict[str, Path] = {}

    def folder(family: str, **options: object) -> Path:
        key = "-".join([family, *(f"{name}_{value}" for name, value in options.items())])
        if key not in made:
            made[key] = pipelines.tiny(family, tmp_path_factory.mktemp("pipelines") / key, **options)
        return made[key]

    return folder


@pytest.fixture(autouse=True)
def default_hangup():
    """SIGHUP as a terminal starts a process, also where the tests were started by nohup, which ignores it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
