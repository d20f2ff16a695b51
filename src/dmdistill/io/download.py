"""Files from elsewhere: brought whole, once, with a progress bar; a broken attempt is gone on with."""

from __future__ import annotations

import contextlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

__all__ = ["download"]

PIECE = 1 << 20  # bytes
PATIENCE = 30.0  # seconds without a byte


def download(url: str, file: Path, *, check: Callable[[Path], object]) -> None:
    """Bring a file that is not there yet, whole or not at all.

    check: reads what came, and raises a ValueError where it is something else. ValueError, saying what to do, where the
    file cannot be had.
    """
    part = file.with_name(f"{file.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    with alone(part):
        if not file.is_file():  # another process may have brought it meanwhile
            bring(url, part, file, check)


def bring(url: str, part: Path, file: Path, check: Callable[[Path], object]) -> None:
    """Go on from what an earlier attempt left in `part`; checked, it becomes the file."""
    try:
        receive(url, part)
    except urllib.error.HTTPError as error:
        raise ValueError(f"{url}: the server says {error.code} {error.reason}; {by_hand(file)}") from None
    except (OSError, HTTPException) as error:
        why = getattr(error, "reason", None) or error
        raise ValueError(f"{url} cannot be reached ({why}); {by_hand(file)}") from None
    try:
        check(part)
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
