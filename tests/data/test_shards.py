"""Shards: every row once, in its place, whatever the sizes of shards and batches."""

import pytest
import torch

from dmdistill.data.shards import ShardLayout, gather_rows, read_shard, write_shards


def rows_of_shard(shard, size, rows):
    numbers = torch.arange(shard * size + rows.start, shard * size + rows.stop)
    return {"a": numbers.half(), "b": numbers[:, None].repeat(1, 2)}


def write(folder, count, size, batch, shards=None):
    layout = ShardLayout(folder, count, size)
    chosen = layout.missing() if shards is None else shards
    write_shards(
        layout,
        chosen,
        lambda shard, rows: rows_of_shard(shard, size, rows),
        batch=batch,
        track=lambda items, name: items,
        name="rows",
    )
    return layout


@pytest.mark.parametrize(("count", "size", "batch"), [(11, 4, 3), (11, 4, 4), (12, 4, 100), (1, 5, 1), (7, 1, 2)])
def test_every_row_is_in_its_place(count, size, batch, tmp_path):
    layout = write(tmp_path, count, size, batch)
    assert layout.missing() == []
    assert sum(map(layout.rows, range(len(layout)))) == count
    shards = [read_shard(layout.file(i), layout.rows(i), {"a": (), "b": (2,)}) for i in range(len(layout))]
    rows = torch.arange(count).flip(0)
    assert torch.equal(gather_rows(shards, "a", rows), rows.half())
    assert torch.equal(gather_rows(shards, "b", rows), rows[:, None].repeat(1, 2))
    assert gather_rows(shards, "b", rows[:0]).shape == (0, 2)


def test_only_missing_shards_are_made(tmp_path):
    layout = write(tmp_path, 11, 4, 3)
    layout.file(1).unlink()
    stamps = [layout.file(shard).stat().st_mtime_ns for shard in (0, 2)]
    assert layout.missing() == [1]
    write(tmp_path, 11, 4, 2)
    assert [layout.file(shard).stat().st_mtime_ns for shard in (0, 2)] == stamps
    assert read_shard(layout.file(1), 4, {"a": (), "b": (2,)})["a"].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("row_shapes", [{"a": ()}, {"a": (), "b": (3,)}, {"a": (), "b": (2,), "c": ()}])
def test_a_shard_of_other_tensors_is_named(row_shapes, tmp_path):
    layout = write(tmp_path, 4, 4, 4)
    with pytest.raises(ValueError, match=r"shard-00000\.safetensors"):
        read_shard(layout.file(0), 4, row_shapes)
    with pytest.raises(ValueError, match=r"shard-00000\.safetensors"):
        read_shard(layout.file(0), 3, {"a": (), "b": (2,)})
