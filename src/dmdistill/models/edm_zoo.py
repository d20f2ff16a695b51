"""The models that EDM's authors published (Karras et al. 2022), by name: downloaded once, checked at every use.

Their weights are licensed CC BY-NC-SA 4.0. No hashes of them were published: what is downloaded is checked by its size
and by reading it; its hash is stored beside it and compared at every later use.
"""

from __future__ import annotations

import os
from pathlib import Path

from dmdistill.io.atomic import atomic_write
from dmdistill.io.console import say
from dmdistill.io.download import download
from dmdistill.io.file_hashes import file_sha256
from dmdistill.io.folders import cache_folder
from dmdistill.io.safe_pickle import read_pickle

__all__ = ["NAMES", "download_checkpoint", "summary"]

URL = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained"
NAMES = (
    *(f"edm-cifar10-32x32-{labels}-{path}" for labels in ("cond", "uncond") for path in ("vp", "ve")),
    *(f"edm-{data}-64x64-uncond-{path}" for data in ("ffhq", "afhqv2") for path in ("vp", "ve")),
    "edm-imagenet-64x64-cond-adm",
)


def summary() -> str:
    """Return all names, abbreviated."""
    return "edm-cifar10-32x32-{cond,uncond}-{vp,ve}, edm-{ffhq,afhqv2}-64x64-uncond-{vp,ve}, " + NAMES[-1]


def download_checkpoint(name: str) -> Path:
    """Return the file of a published model, downloaded into the cache if it is not there.

    $DMDISTILL_EDM_URL names a mirror. ValueError, saying what to do, where it cannot be downloaded or has changed.
    """
    file = cache_folder() / f"{name}.pkl"
    if not file.is_file():
        download(f"{os.environ.get('DMDISTILL_EDM_URL', URL).rstrip('/')}/{name}.pkl", file, check=read_pickle)
    check_hash(file)
    return file


def check_hash(file: Path) -> None:
    """Store the hash of a file at its first use; ValueError where a later one differs."""
    found = file_sha256(file)
    record = file.with_name(f"{file.name}.sha256")
    if not record.exists():
        with atomic_write(record) as temporary:
            temporary.write_text(f"{found}  {file.name}\n", encoding="utf-8")
        say(f"sha256 {found}, stored in {record}", stderr=True)
    elif record.read_text(encoding="utf-8").split()[:1] != [found]:
        raise ValueError(f"{file} has changed since {record.name} was written: remove both to download it again")
