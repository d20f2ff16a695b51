"""What a set of pairs of any size costs: opening it, choosing a step's pairs, and reading them.

The files are as large as real ones, but sparse: of z and y, which are zeros, nothing lies on the disk. They take about
20 KB for each 2000 pairs.

    python benchmarks/pairs_at_scale.py --count 12000000
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dmdistill.data.pairs import PairSettings, open_pairs, write_settings
from dmdistill.data.shards import CHECKSUM, ShardLayout


def write_sparse_set(layout: ShardLayout, shape: tuple[int, ...]) -> None:
    """Write a set of zeros, whose checksums of rows are right, without writing the zeros."""
    settings = {"teacher": "none", "conditions": "1 class", "solver": "heun", "steps": 1, "guidance": 1.0, "seed": 0}
    layout.folder.mkdir(parents=True, exist_ok=True)
    sizes = {"count": layout.count, "shard_size": layout.size}
    write_settings(layout.folder / "pairs.json", PairSettings(**settings, **sizes, precision="float32"), None)
    checksum = zlib.crc32(bytes(8 + 4 * math.prod(shape)))  # of a row of index, y and z
    for shard in layout.missing():
        rows = layout.rows(shard)
        tensors = {CHECKSUM: ("I64", (), 8), "index": ("I64", (), 8), "y": ("F16", shape, 2), "z": ("F16", shape, 2)}
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, (dtype, row_shape, size) in tensors.items():
            start, end = end, end + rows * size * math.prod(row_shape)
            header[name] = {"dtype": dtype, "shape": [rows, *row_shape], "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with layout.file(shard).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text + rows * checksum.to_bytes(8, "little"))
            file.truncate(8 + len(text) + end)


def milliseconds(run: Callable[[int], Any], repeats: int) -> str:
    """Return the median and the largest time of a call, of which each gets its number."""
    times = []
    for number in range(repeats):
        started = time.perf_counter()
        run(number)
        times.append(1e3 * (time.perf_counter() - started))
    return f"{statistics.median(times):.3f} (at most {max(times):.3f})"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="pairs")
    parser.add_argument("--shape", type=int, nargs="*", default=[4, 64, 64], help="of an image or latent")
    parser.add_argument("--batch", type=int, default=48, help="pairs of a step")
    parser.add_argument("--shard-size", type=int, default=2000, help="pairs per file")
    parser.add_argument("--steps", type=int, default=200, help="that are timed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        layout = ShardLayout(Path(folder), arguments.count, arguments.shard_size)
        write_sparse_set(layout, tuple(arguments.shape))
        size = sum(layout.file(shard).stat().st_size for shard in range(len(layout)))
        print(f"{arguments.count} pairs of {arguments.shape}, {len(layout)} files of {size / 1e9:.4g} GB together")
        print(f"opening: {milliseconds(lambda _: open_pairs(layout.folder), 5)} ms")
        pairs, batch = open_pairs(layout.folder), arguments.batch
        print(
            f"choosing {batch} pairs, an epoch's first: {milliseconds(lambda i: pairs.rows(i * 10**8, batch), 20)} ms"
        )
        print(f"choosing {batch} pairs: {milliseconds(lambda step: pairs.rows(step, batch), arguments.steps)} ms")
        read = milliseconds(lambda step: pairs[pairs.rows(step, batch)], arguments.steps)
        print(f"choosing, reading and verifying {batch} pairs: {read} ms")
        rows = pairs.rows(0, batch)
        print(f"the same from memory: {milliseconds(lambda _: pairs[rows], arguments.steps)} ms")


if __name__ == "__main__":
    main()
