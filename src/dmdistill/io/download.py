"""Downloads of single files: complete and checked or not at all, resumed after an interruption, with a progress bar."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from dmdistill.io.errors import describe_write_errors

__all__ = ["download"]

CHUNK = 1 << 20  # bytes
TIMEOUT = 30.0  # seconds without a byte


def download(url: str, file: Path, *, check: Callable[[Path], object]) -> None:
    """Download a file that is missing. Of several processes one downloads while the others wait.

    Args:
        url: address of the file.
        file: where to put it; `file`.part beside it holds an unfinished download, which is resumed.
        check: reads the finished download and raises ValueError where it is something else.

    Raises:
        ValueError: the file cannot be had, or is something else; the message says what to do.
    """
    part = file.with_name(f"{file.name}.part")
    with describe_write_errors(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{part}.lock").acquire()
    with lock:
        if not file.is_file():  # another process may have brought it meanwhile
            receive(url, part, file)
            try:
                check(part)
            except ValueError as error:
                part.unlink()
                raise ValueError(f"{url} sent something else: {error}") from None
            os.replace(part, file)


def receive(url: str, part: Path, file: Path) -> None:
    """Complete `part`. ValueError, saying where to put the file by hand, where that fails."""
    by_hand = f"try again, or put the file at {file}"
    try:
        request_rest(url, part)
    except urllib.error.HTTPError as error:
        raise ValueError(f"{url}: the server says {error.code} {error.reason}; {by_hand}") from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise ValueError(f"{url} cannot be reached ({reason}); {by_hand}") from None


def request_rest(url: str, part: Path) -> None:
    """Request what `part` does not hold yet and append it."""
    size = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={size}-"} if size else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing is left to send: `part` is complete, or of another file
            raise
        if error.headers.get("Content-Range", "").rpartition("/")[2] != str(size):
            part.unlink()
            request_rest(url, part)
        return
    with response:
        start = size if response.status == 206 else 0  # a server that knows no ranges begins anew
        total = start + int(response.headers["Content-Length"]) if response.headers["Content-Length"] else None
        with part.open("ab" if start else "wb") as target:
            copy_stream(response, target, name=part.stem, start=start, total=total)
    size = part.stat().st_size
    if total is not None and size != total:
        raise OSError(f"{size} of {total} bytes came; the next attempt resumes there")


def copy_stream(source: Any, target: IO[bytes], *, name: str, start: int, total: int | None) -> None:
    """Copy all bytes that come, with a progress bar."""
    console = Console(stderr=True)
    console.print(f"downloading {name}" + (f" ({total / 1e6:.0f} MB)" if total else ""), highlight=False, markup=False)
    columns = [TextColumn(""), BarColumn(bar_width=20), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total, completed=start)
        while chunk := source.read(CHUNK):
            try:
                target.write(chunk)
                target.flush()
            except OSError as error:  # as ValueError, which is not taken for an error of the network
                raise ValueError(f"{target.name} cannot be written: {error.strerror or error}") from None
            progress.update(task, advance=len(chunk))
