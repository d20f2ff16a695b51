"""Files and folders in parts small enough to travel, and together again, checked by sha256.

    python parcels.py split SOURCE PARTS [--mib 15]    write PARTS/NAME.000, NAME.001 ... and NAME.parcel, their list
    python parcels.py take PARTS STORE                 copy what arrived into STORE; make whole what is complete there

A machine that is reached by small parcels alone is sent the parts of a large one in turn, and told to take them each
time.
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
    """Pack a file or folder, without compression, and write its parts of at most so many MiB; answers with them."""
    parts.mkdir(parents=True, exist_ok=True)
    whole = parts / f"{source.name}.tar"
    with tarfile.open(whole, "w") as archive:
        archive.add(source, source.name)
    digest, made = hashlib.sha256(), []
    with whole.open("rb") as stream:
        while content := stream.read(int(mib * BLOCK)):
            digest.update(content)
            made.append(parts / f"{source.name}.{len(made):03d}")
            made[-1].write_bytes(content)
    whole.unlink()
    about = {"parts": [part.name for part in made], "sha256": digest.hexdigest()}
    (parts / f"{source.name}.parcel").write_text(json.dumps(about))
    return [*made, parts / f"{source.name}.parcel"]


def take(parts: Path, store: Path) -> list[Path]:
    """Copy parts into a store and unpack there what is complete; answers with what was unpacked.

    ValueError where a parcel's content is another than was sent.
    """
    store.mkdir(parents=True, exist_ok=True)
    for file in sorted(parts.iterdir()) if parts.is_dir() else []:
        if file.is_file():
            shutil.copyfile(file, store / file.name)
    return [unpack(about, store) for about in sorted(store.glob("*.parcel")) if is_complete(about)]


def is_complete(about: Path) -> bool:
    found = json.loads(about.read_text())
    return all((about.parent / name).is_file() for name in found["parts"])


def unpack(about: Path, store: Path) -> Path:
    """Make whole what all parts of are there; the parts are removed."""
    found = json.loads(about.read_text())
    files, whole = [store / name for name in found["parts"]], about.with_suffix(".tar")
    digest = hashlib.sha256()
    with whole.open("wb") as stream:
        for content in (block for file in files for block in blocks(file)):
            digest.update(content)
            stream.write(content)
    if digest.hexdigest() != found["sha256"]:
        whole.unlink()
        raise ValueError(f"{about.stem}: its parts are damaged or of different parcels; split and send it again")
    with tarfile.open(whole) as archive:
        archive.extractall(store, filter="data")
    for file in (whole, about, *files):
        file.unlink()
    return store / about.stem


def blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while content := stream.read(BLOCK):
            yield content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("split", "take"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--mib", type=float, default=15)
    asked = parser.parse_args()
    if asked.what == "split":
        made = split(asked.source, asked.target, mib=asked.mib)
        print(f"{len(made)} files in {asked.target}")
    else:
        whole = take(asked.source, asked.target)
        print("whole: " + (", ".join(path.name for path in whole) or "nothing yet"))


if __name__ == "__main__":
    main()
