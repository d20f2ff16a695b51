"""Split files and folders into parts, to transfer in any order, and join them again, verified by sha256.

    python parcels.py split SOURCE PARTS [--mib 15]    write PARTS/NAME.000, NAME.001 ... and NAME.parcel, their list
    python parcels.py take PARTS STORE                 copy the parts into STORE; unpack what is complete there

A computer that takes only small transfers is sent the parts of a large file in turn, and takes them each time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

BLOCK = 1 << 20


def split(source: Path, parts: Path, *, mib: float = 15) -> list[Path]:
    """Pack a file or folder without compression into parts of at most `mib` MiB; return them and their list."""
    parts.mkdir(parents=True, exist_ok=True)
    archive_file = parts / f"{source.name}.tar"
    with tarfile.open(archive_file, "w") as archive:
        archive.add(source, source.name)
    digest, written = hashlib.sha256(), []
    with archive_file.open("rb") as stream:
        while block := stream.read(int(mib * BLOCK)):
            digest.update(block)
            written.append(parts / f"{source.name}.{len(written):03d}")
            written[-1].write_bytes(block)
    archive_file.unlink()
    about = {"parts": [part.name for part in written], "sha256": digest.hexdigest()}
    (parts / f"{source.name}.parcel").write_text(json.dumps(about))
    return [*written, parts / f"{source.name}.parcel"]


def take(parts: Path, store: Path) -> list[Path]:
    """Copy parts into a store and unpack what is complete there; return what was unpacked.

    ValueError if the content of a parcel differs from what was sent.
    """
    store.mkdir(parents=True, exist_ok=True)
    for file in sorted(parts.iterdir()) if parts.is_dir() else []:
        if file.is_file():
            shutil.copyfile(file, store / file.name)
    return [unpack(about, store) for about in sorted(store.glob("*.parcel")) if is_complete(about)]


def is_complete(about: Path) -> bool:
    """Whether all parts of a parcel are there."""
    content = json.loads(about.read_text())
    return all((about.parent / name).is_file() for name in content["parts"])


def unpack(about: Path, store: Path) -> Path:
    """Unpack a complete parcel and remove its parts."""
    content = json.loads(about.read_text())
    files, joined = [store / name for name in content["parts"]], about.with_suffix(".tar")
    digest = hashlib.sha256()
    with joined.open("wb") as stream:
        for block in (block for file in files for block in blocks(file)):
            digest.update(block)
            stream.write(block)
    if digest.hexdigest() != content["sha256"]:
        joined.unlink()
        raise ValueError(f"{about.stem}: its parts are damaged or of different parcels; split and send it again")
    with tarfile.open(joined) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # not in Python 3.11.2, Debian's
        archive.extractall(store)
    for file in (joined, about, *files):
        file.unlink()
    return store / about.stem


def blocks(file: Path) -> Iterator[bytes]:
    """Read a file block by block."""
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            yield block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("split", "take"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--mib", type=float, default=15)
    options = parser.parse_args()
    if options.what == "split":
        written = split(options.source, options.target, mib=options.mib)
        print(f"{len(written)} files in {options.target}")
    else:
        unpacked = take(options.source, options.target)
        print("complete: " + (", ".join(path.name for path in unpacked) or "nothing yet"))


if __name__ == "__main__":
    main()
