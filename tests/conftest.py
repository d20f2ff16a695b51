"""What all tests share: one thread, a tiny teacher on disk, and a data set in the official files' format."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dmdistill.app.config import Network, Teach
from dmdistill.app.teach import new_teacher
from dmdistill.data.images import ImageSet
from dmdistill.teachers.folder import save_model

torch.set_num_threads(1)  # tensors this small only wait for a second core; and one thread adds in one order

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay")


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory) -> Path:
    """The folder of a teacher of 1 x 8 x 8 images, random in every weight, with no judge."""
    torch.manual_seed(0)
    config = Teach(network=Network(model_channels=16, channel_mult=(1,), num_blocks=1))
    teacher = new_teacher(
        config, ImageSet(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.zeros(1), CLASSES, licence="MIT")
    )
    for parameter in teacher.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    teacher.config.update(name="tiny", judge=None)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(folder, teacher, card="A teacher of nothing.")
    return folder


def write_idx(path: Path, values: Tensor) -> None:
    """An IDX file of unsigned bytes, gzipped, written as the format's description says."""
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(gzip.compress(header + values.numpy().tobytes()))


@pytest.fixture(scope="session")
def idx_writer():
    return write_idx


@pytest.fixture(scope="session")
def idx_folder(tmp_path_factory) -> Path:
    """Random images of 12 x 12 under Fashion-MNIST's names: 200 to train on, 60 to test with."""
    folder = tmp_path_factory.mktemp("idx")
    rng = torch.Generator().manual_seed(0)
    for part, count in (("train", 200), ("t10k", 60)):
        images = torch.randint(256, (count, 12, 12), generator=rng, dtype=torch.uint8)
        labels = torch.randint(10, (count,), generator=rng, dtype=torch.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)
    return folder
