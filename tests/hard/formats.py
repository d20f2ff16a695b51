"""Formats that one function reads: how a small folder of each is written, and read to something that compares.

Formats of our own carry checksums: no damage passes in silence. Others' images and tables have none, and are then other
data, which is what their hash says.
"""

import gzip
import io
import json
import pickle
import zipfile

import numpy as np
import torch
from PIL import Image

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.presets import from_preset
from dmdistill.data.image_sources import open_images
from dmdistill.data.pairs import PairSettings, make_pairs, open_pairs
from dmdistill.data.prompt_embeddings import encode_prompts
from dmdistill.data.prompt_files import read_prompts
from dmdistill.data.training_set import load_labelled_images
from dmdistill.io.atomic import read_json, read_safetensors, write_json, write_safetensors
from dmdistill.io.safe_pickle import read_pickle
from dmdistill.metrics.frechet import load_edm_statistics
from dmdistill.metrics.lpips_weights import read_torch_file


def picture(seed, kind):
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), np.uint8)
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(stream, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP") else {}))
    return stream.getvalue()


def write_tensors(folder):
    write_safetensors(folder / "x", {"a": torch.arange(40.0), "b": torch.arange(7)})


def write_pairs(folder):
    settings = {"teacher": "t", "conditions": "c", "solver": "heun", "steps": 3, "guidance": 1.0, "seed": 5}
    settings = PairSettings(**settings, count=5, shard_size=3, precision="float32")
    device = torch.device("cpu")
    draw = {"draw": lambda n, rng: (torch.randn(n, 1, 2, 3, generator=rng), torch.zeros(n, dtype=torch.int64))}
    make_pairs(folder, settings, **draw, generate=lambda z, index: z / 2, batch=9, device=device)


class Encoder:
    id = "e"

    def encode(self, prompts):
        return {"e": torch.ones(len(prompts), 2)}

    def empty(self):
        return {"e": torch.zeros(1, 2)}


def encode(folder):
    prompts = encode_prompts(["a", "b", "c"], Encoder(), folder, shard_size=2)
    return prompts.select(torch.arange(3)).tensors["e"].tolist()


def write_images(kind, folder):
    for i in range(3):
        (folder / f"{i}.{kind.lower()}").write_bytes(picture(i, kind))


def write_zip(folder):
    with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(3):
            archive.writestr(f"{i}.png", picture(i, "PNG"))
        archive.writestr("dataset.json", json.dumps({"labels": [[f"{i}.png", i] for i in range(3)]}))


def read_images(source):
    images = open_images(str(source))
    labels = None if images.labels is None else images.labels.index.tolist()
    return images.images(range(len(images))).tolist(), labels, len(images.digest())


def write_idx(folder):
    for name, shape in (("images-idx3", (5, 3, 4)), ("labels-idx1", (5,))):
        head = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
        data = head + bytes(i % 7 for i in range(int(np.prod(shape))))
        (folder / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(data))


def read_labelled(folder):
    data = load_labelled_images(folder)
    return data.images.tolist(), data.labels.tolist(), data.names


def write_cifar(folder):
    for i in range(1, 6):
        (folder / f"data_batch_{i}.bin").write_bytes(bytes([i]) + bytes(range(256)) * 12)


def write_pickle(folder):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": [torch.ones(2).half(), "text", {"c", "d"}, np.float64(2)]}
    (folder / "x.pkl").write_bytes(pickle.dumps(tensors, protocol=4))


def write_statistics(folder):
    covariance = np.eye(5) + 0.1
    np.savez(folder / "x.npz", mu=np.arange(5.0), sigma=covariance)


def read_statistics(folder):
    statistics = load_edm_statistics(folder / "x.npz")
    return statistics.mean.tolist(), statistics.covariance.tolist()


def read_options(folder):
    return repr(from_preset(DistillConfig, str(folder / "x.toml")))


FORMATS = {  # name -> (write a folder, read it to something that compares, whether damage must be detected)
    "safetensors": (write_tensors, lambda f: {k: v.tolist() for k, v in read_safetensors(f / "x").items()}, True),
    "pairs": (write_pairs, lambda f: [x.tolist() for x in open_pairs(f)[range(5)]], True),
    "prompt embeddings": (encode, encode, True),
    "json": (lambda f: write_json(f / "x", {"a": [1, 2.5, "x"]}), lambda f: read_json(f / "x"), False),
    "pickle": (write_pickle, lambda f: repr(read_pickle(f / "x.pkl")), False),
    "torch weights": (
        lambda f: torch.save({"a": torch.arange(6.0)}, f / "x.pth"),
        lambda f: {name: tensor.tolist() for name, tensor in read_torch_file(f / "x.pth").items()},
        False,
    ),
    "zip": (write_zip, lambda f: read_images(f / "x.zip"), False),
    "idx": (write_idx, read_labelled, False),
    "cifar10": (write_cifar, read_labelled, False),
    "npz statistics": (write_statistics, read_statistics, False),
    "preset": (
        lambda f: (f / "x.toml").write_text("batch = 4\n[distill]\nlr = 2e-5\nsteps = 31\n"),
        read_options,
        False,
    ),
    "tsv": (lambda f: (f / "x.tsv").write_text("id\tcaption\n1\ta\n"), lambda f: read_prompts(f / "x.tsv"), False),
    "csv": (lambda f: (f / "x.csv").write_text("id;prompt\n1;a\n2;b\n"), lambda f: read_prompts(f / "x.csv"), False),
    "jsonl": (
        lambda f: (f / "x.jsonl").write_text('{"id": 1, "text": "a"}\n{"id": 2, "text": "b"}\n'),
        lambda f: read_prompts(f / "x.jsonl"),
        False,
    ),
    "txt": (lambda f: (f / "x.txt").write_text("a\nb\n"), lambda f: read_prompts(f / "x.txt"), False),
}
for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"):
    FORMATS[kind] = (lambda f, kind=kind: write_images(kind, f), read_images, False)
