"""Encoded images: each once and in its place, whatever the sizes of files and batches, and after a kill."""

import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dmdistill.data.image_latents import encode_images, latent_layout, latent_reader
from dmdistill.data.image_sources import open_images

SHAPE = (3, 2, 3)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path, rng):
    (tmp_path / "set").mkdir()
    for i, pixels in enumerate(torch.randint(256, (7, 4, 6, 3), generator=rng, dtype=torch.uint8)):
        Image.fromarray(pixels.numpy()).save(tmp_path / "set" / f"{i}.png")
    return tmp_path / "set"


def shrink(x):
    """Encode images by means of 2 x 2 pixels."""
    return torch.nn.functional.avg_pool2d(x, 2)


def encode(source, folder, *, shard_size, batch):
    """Encode a folder; return what reads the latents, and how many images were encoded."""
    images, counts = open_images(str(source)), []
    layout = latent_layout(images, folder, encoder="means", shape=SHAPE, shard_size=shard_size)

    def encode_counted(x):
        counts.append(len(x))
        return shrink(x)

    encode_images(images, layout, layout.missing(), encode_counted, batch=batch)
    return latent_reader(layout, SHAPE), sum(counts)


def expected(folder):
    pixels = np.stack([np.asarray(Image.open(folder / f"{i}.png")) for i in range(7)])
    return shrink(torch.tensor(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1).half().float()


@pytest.mark.parametrize(("shard_size", "batch"), [(3, 2), (2, 5), (7, 7), (512, 3), (1, 1)])
def test_every_image_is_in_its_place(shard_size, batch, folder, tmp_path):
    read, count = encode(folder, tmp_path / "latents", shard_size=shard_size, batch=batch)
    rows = torch.tensor([6, 0, 3, 3, 5])
    assert count == 7
    assert read(rows).dtype == torch.float32
    assert torch.equal(read(rows), expected(folder)[rows])
    assert encode(folder, tmp_path / "latents", shard_size=shard_size, batch=batch)[1] == 0


def test_encoding_goes_on_after_a_kill(folder, tmp_path):
    """SIGKILL in the third of four files: the next call encodes the last three images."""
    code = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from dmdistill.data.image_latents import encode_images, latent_layout\n"
        "from dmdistill.data.image_sources import open_images\n"
        "calls = []\n"
        "def encode(x):\n"
        "    calls.append(x)\n"
        "    return x[:, :, ::2, ::2] if len(calls) < 3 else os.kill(os.getpid(), signal.SIGKILL)\n"
        "images = open_images(sys.argv[1])\n"
        "layout = latent_layout(images, Path(sys.argv[2]), encoder='means', shape=(3, 2, 3), shard_size=2)\n"
        "encode_images(images, layout, layout.missing(), encode, batch=2)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder), str(tmp_path / "latents")], check=False)
    assert done.returncode == -signal.SIGKILL
    read, count = encode(folder, tmp_path / "latents", shard_size=2, batch=2)
    assert count == 3
    pixels = np.stack([np.asarray(Image.open(folder / f"{i}.png"))[::2, ::2] for i in range(4)])
    killed = (torch.tensor(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1).half().float()
    assert torch.equal(read(torch.arange(7)), torch.cat([killed, expected(folder)[4:]]))


def test_sets_encoders_shapes_and_sizes_have_files_of_their_own(folder, tmp_path):
    images, same = open_images(str(folder)), {"encoder": "a", "shape": SHAPE}
    folders = [
        latent_layout(images, tmp_path, **same).folder,
        latent_layout(open_images(str(folder), side=8), tmp_path, **same).folder,
        latent_layout(images, tmp_path, **{**same, "encoder": "b"}).folder,
        latent_layout(images, tmp_path, **{**same, "shape": (3, 3, 2)}).folder,
        latent_layout(images, tmp_path, **same, shard_size=5).folder,
    ]
    assert len(set(folders)) == 5
    assert latent_layout(open_images(str(folder)), tmp_path, **same).folder == folders[0]
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(folder / "2.png")
    assert latent_layout(open_images(str(folder)), tmp_path, **same).folder not in folders
