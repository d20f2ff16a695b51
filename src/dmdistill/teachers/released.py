"""The models that EDM's authors published (Karras et al. 2022): by name, downloaded once, checked ever after.

Their weights are licensed CC BY-NC-SA 4.0. No hashes of them were published: what is downloaded is checked by its size
and by being readable, and its hash is kept beside it and compared at every later use.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from dmdistill.files import cache_folder, written_whole
from dmdistill.teachers.pickles import read_pickle

__all__ = ["NAMES", "released", "summary"]

URL = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained"
NAMES = (
    *(f"edm-cifar10-32x32-{labels}-{path}" for labels in ("cond", "uncond") for path in ("vp", "ve")),
    *(f"edm-{data}-64x64-uncond-{path}" for data in ("ffhq", "afhqv2") for path in ("vp", "ve")),
    "edm-imagenet-64x64-cond-adm",
)
PIECE = 1 << 20  # bytes
PATIENCE = 30.0  # seconds without a byte


def summary() -> str:
    """All names, in few words."""
    return "edm-cifar10-32x32-{cond,uncond}-{vp,ve}, edm-{ffhq,afhqv2}-64x64-uncond-{vp,ve}, " + NAMES[-1]


def released(name: str) -> Path:
    """The file of a published model: from the cache, else downloaded into it.

    $DMDISTILL_EDM_URL names a mirror. ValueError, saying what to do, where it cannot be had or is not what it was.
    """
    file = cache_folder() / f"{name}.pkl"
    if not file.is_file():
        part = file.with_name(f"{file.name}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        with alone(part):
            if not file.is_file():  # another process may have brought it meanwhile
                download(f"{os.environ.get('DMDISTILL_EDM_URL', URL).rstrip('/')}/{name}.pkl", part, file)
    check(file)
    return file


def download(url: str, part: Path, file: Path) -> None:
    """Bring a file whole, going on from what an earlier attempt left in `part`."""
    try:
        receive(url, part)
    except urllib.error.HTTPError as error:
        raise ValueError(f"{url}: the server says {error.code} {error.reason}; {by_hand(file)}") from None
    except (OSError, HTTPException) as error:
        why = getattr(error, "reason", None) or error
        raise ValueError(f"{url} cannot be reached ({why}); {by_hand(file)}") from None
    try:
        read_pickle(part)
    except ValueError as error:
        part.unlink()
        raise ValueError(f"{url} sent something else: {error}") from None
    os.replace(part, file)


def receive(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=PATIENCE)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing is left to send: `part` is whole, or not of this file
            raise
        if error.headers.get("Content-Range", "").rpartition("/")[2] != str(have):
            part.unlink()
            receive(url, part)
        return
    with response:
        start = have if response.status == 206 else 0  # a server that knows no ranges begins anew
        total = start + int(response.headers["Content-Length"]) if response.headers["Content-Length"] else None
        with part.open("ab" if start else "wb") as target:
            copy(response, target, name=part.stem, start=start, total=total)
    size = part.stat().st_size
    if total is not None and size != total:
        raise OSError(f"{size} of {total} bytes came; the next attempt goes on from there")


def copy(source: Any, target: IO[bytes], *, name: str, start: int, total: int | None) -> None:
    """All bytes that come, with a progress bar."""
    console = Console(stderr=True)
    console.print(f"downloading {name} ({total / 1e6:.0f} MB)" if total else f"downloading {name}", highlight=False)
    columns = [TextColumn(""), BarColumn(bar_width=20), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total, completed=start)
        while piece := source.read(PIECE):
            target.write(piece)
            progress.update(task, advance=len(piece))


def by_hand(file: Path) -> str:
    return f"try again, or put the file at {file}"


def check(file: Path) -> None:
    """The hash of the first use is kept; ValueError where a later one differs."""
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    record = file.with_name(f"{file.name}.sha256")
    if not record.exists():
        with written_whole(record) as temporary:
            temporary.write_text(f"{found}  {file.name}\n", encoding="utf-8")
        Console(stderr=True).print(f"sha256 {found}, kept in {record}", highlight=False, markup=False, soft_wrap=True)
    elif record.read_text(encoding="utf-8").split()[:1] != [found]:
        raise ValueError(f"{file} is not what it was when {record.name} was written: remove both to download it again")


@contextlib.contextmanager
def alone(part: Path) -> Iterator[None]:
    """One process downloads while the others wait; where the system has no such locks, none waits."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with part.with_name(f"{part.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
