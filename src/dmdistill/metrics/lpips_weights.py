"""The weights of LPIPS: found, or made of the files that torchvision (VGG16) and lpips (heads) publish, and loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from dmdistill.io.atomic import read_safetensors, write_safetensors
from dmdistill.io.checksums import note_once, tensor_digest
from dmdistill.io.download import download
from dmdistill.io.errors import first_line
from dmdistill.io.file_hashes import file_sha256
from dmdistill.io.folders import cache_folder
from dmdistill.metrics.assets import asset_places, find_asset
from dmdistill.metrics.lpips import LPIPS, Pooling

__all__ = ["FILE", "HEADS", "VGG16", "find_lpips", "load_lpips", "make_lpips", "published_name", "read_torch_file"]

FILE = "lpips_vgg16.safetensors"
PUBLISHED = "13dc372fe180a6c00cbd5b9b52f2a897d76fb24334242d50950b963ebf6b7e77"  # sha256 of the tensors


@dataclass(frozen=True)
class Source:
    """A published file that the weights are made of."""

    name: str
    folder: str
    sha256: str

    @property
    def url(self) -> str:
        """Its address, in the folder $DMDISTILL_LPIPS_URL where that is set."""
        return f"{os.environ.get('DMDISTILL_LPIPS_URL', self.folder).rstrip('/')}/{self.name}"

    def find(self) -> Path:
        """Return the file from $DMDISTILL_ASSETS, the cache or torch's, else download it into the cache.

        ValueError where it cannot be had, or has another hash.
        """
        stored = Path(torch.hub.get_dir()) / "checkpoints" / self.name
        file = find_asset(self.name) or (stored if stored.is_file() else cache_folder() / self.name)
        if file.is_file():
            self.check(file)
        else:
            download(self.url, file, check=self.check)
        return file

    def check(self, file: Path) -> None:
        """Raise ValueError where a file is not the published one."""
        if (found := file_sha256(file)) != self.sha256:
            raise ValueError(f"{file} has sha256 {found}, the published one {self.sha256}: remove it")


VGG16 = Source(
    "vgg16-397923af.pth",
    "https://download.pytorch.org/models",
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
)
HEADS = Source(
    "vgg.pth",
    "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1",
    "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
)


def load_lpips(path: Path | None = None, *, resize: int | None = 224, pooling: Pooling = "max") -> LPIPS:
    """Load LPIPS from a safetensors file. ValueError, naming the file, where it is missing, damaged or another kind.

    Its tensors have the published names: features.N.weight and .bias of VGG16, linN.model.1.weight of the heads. Other
    weights than the published ones are used, and named on stderr.

    Args:
        path: the file. A mere name is also looked for in $DMDISTILL_ASSETS and the cache. None for `find_lpips`.
        resize: see `LPIPS`.
        pooling: see `LPIPS`.
    """
    if path is None:
        file = find_lpips()
    else:
        file = path.expanduser() if path.is_file() or path.name != str(path) else find_asset(path.name)
    if file is None:
        raise ValueError(f"--lpips-weights {path} is neither here nor in {asset_places()}")
    weights = read_safetensors(file)
    model = LPIPS(resize=resize, pooling=pooling)
    check_weights(weights, model, str(file))
    if (digest := tensor_digest(weights)) != PUBLISHED:
        note_once(f"LPIPS weights {file} are not the published ones (sha256 {digest})")
    model.load_state_dict({name: weights[published_name(name)] for name in model.state_dict()})
    return model


def find_lpips() -> Path:
    """Return the file of the weights in $DMDISTILL_ASSETS or the cache; where neither has it, make it in the cache.

    ValueError, saying what to do, where its sources cannot be had either.
    """
    if (file := find_asset(FILE)) is not None:
        return file
    file = cache_folder() / FILE
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):  # the first of several processes makes it
            return find_asset(FILE) or make_lpips(file)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"LPIPS: no {FILE} in {asset_places()}, and it cannot be made: {error}. Where there is a network, "
            f"`dmdistill convert lpips` makes it of {VGG16.url} and {HEADS.url}; or choose --distance huber"
        ) from None


def make_lpips(file: Path, *, vgg16: Path | None = None, heads: Path | None = None) -> Path:
    """Write the weights of LPIPS to a safetensors file, in the published names and precision.

    Args:
        file: to write.
        vgg16: torchvision's file of VGG16; None to find or download it (`Source.find`).
        heads: the file of the linear layers of lpips 0.1, vgg.pth; None to find or download it.

    Returns:
        The file.

    Raises:
        ValueError: a file cannot be had, is damaged, or holds something else.
    """
    sources = [heads or HEADS.find(), vgg16 or VGG16.find()]  # the small one first
    tensors = {name: tensor for source in sources for name, tensor in read_torch_file(source).items()}
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier.")}
    check_weights(weights, LPIPS(), " with ".join(map(str, sources)))
    write_safetensors(file, weights)
    return file


def read_torch_file(file: Path) -> Mapping[str, Tensor]:
    """Read a file of named tensors that torch.save wrote, without running code. ValueError where it is another kind."""
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds at bytes that mean nothing
        raise ValueError(f"{file} cannot be read as torch's weights: {first_line(error)}") from None
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(f"{file} holds a {type(tensors).__name__}, expected named tensors")
    return tensors


def check_weights(weights: Mapping[str, Tensor], model: LPIPS, source: str) -> None:
    """Raise ValueError, naming their source, where tensors of the published names are not those of LPIPS."""
    expected = {published_name(name): tensor for name, tensor in model.state_dict().items()}
    for name in sorted(expected.keys() | weights.keys()):
        given, wanted = (tuple(tensors[name].shape) if name in tensors else None for tensors in (weights, expected))
        if given != wanted:
            raise ValueError(f"{source} is no LPIPS: {name} is {given or 'missing'}, expected {wanted or 'none'}")


def published_name(name: str) -> str:
    """Translate vgg.0.weight to features.0.weight, heads.0 to lin0.model.1.weight."""
    part, rest = name.split(".", 1)
    return f"features.{rest}" if part == "vgg" else f"lin{rest}.model.1.weight"
