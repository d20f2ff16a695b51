"""Shards: every row once, in its place, whatever the sizes of shards and batches; damage is found where it is read."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from dmdistill.data import shards
from dmdistill.data.shards import ShardLayout, open_shards, row_checksums, write_shards
from dmdistill.io.atomic import write_safetensors

ROWS = {"a": torch.empty(0, dtype=torch.float16), "b": torch.empty(0, 2, dtype=torch.int64)}


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


def flip(file, at):
    content = bytearray(file.read_bytes())
    content[at] ^= 4
    file.write_bytes(content)


def read_all(layout, rows=ROWS):
    return open_shards(layout, rows).read(torch.arange(layout.count))


@pytest.mark.parametrize(("count", "size", "batch"), [(11, 4, 3), (11, 4, 4), (12, 4, 100), (1, 5, 1), (7, 1, 2)])
def test_every_row_is_in_its_place(count, size, batch, tmp_path):
    layout = write(tmp_path, count, size, batch)
    assert layout.missing() == []
    assert sum(map(layout.rows, range(len(layout)))) == count
    opened, rows = open_shards(layout, ROWS), torch.arange(count).flip(0)
    assert torch.equal(opened.read(rows)["a"], rows.half())
    assert torch.equal(opened.read(rows)["b"], rows[:, None].repeat(1, 2))
    assert opened.read(rows[:0])["b"].shape == (0, 2)
    assert opened.damaged() == []


def test_only_missing_shards_are_made(tmp_path):
    layout = write(tmp_path, 11, 4, 3)
    layout.file(1).unlink()
    stamps = [layout.file(shard).stat().st_mtime_ns for shard in (0, 2)]
    assert layout.missing() == [1]
    with pytest.raises(ValueError, match=r"shard-00001\.safetensors does not exist"):
        open_shards(layout, ROWS)
    write(tmp_path, 11, 4, 2)
    assert [layout.file(shard).stat().st_mtime_ns for shard in (0, 2)] == stamps
    assert read_all(layout)["a"].tolist() == list(range(11))


@pytest.mark.parametrize(
    "rows",
    [
        {"a": ROWS["a"]},
        ROWS | {"c": ROWS["a"]},
        ROWS | {"b": torch.empty(0, 3, dtype=torch.int64)},
        ROWS | {"a": torch.empty(0, dtype=torch.bfloat16)},
        ROWS | {"a": torch.empty(0, 1, dtype=torch.float16)},
    ],
)
def test_shards_of_other_tensors_are_named(rows, tmp_path):
    layout = write(tmp_path, 4, 4, 4)
    with pytest.raises(ValueError, match=r"shard-00000\.safetensors holds"):
        open_shards(layout, rows)


def test_a_set_is_opened_without_reading_it(tmp_path, monkeypatch):
    """But for the headers of the first file and of the last, which has another size."""
    layout, opened = write(tmp_path, 38, 4, 4), []
    read = shards.read_header
    monkeypatch.setattr(shards, "read_header", lambda file: [opened.append(file), read(file)][1])
    monkeypatch.setattr(shards, "read_safetensors", lambda file: pytest.fail("read in full"))
    rows = open_shards(layout, ROWS)
    assert opened == [layout.file(0), layout.file(9)]
    rows.read(torch.tensor([17, 18, 33, 17]))
    rows.read(torch.tensor([16]))
    assert opened[2:] == [layout.file(4), layout.file(8)]


@pytest.mark.parametrize("header", [b"", b"[]", b"{}", b"7", b'{"a": 3}', b'{"a": {"data_offsets": []}}', 9000 * b"["])
def test_a_file_without_a_header_is_one_clear_line(header, tmp_path):
    layout = write(tmp_path, 38, 4, 4)
    layout.file(5).write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match=r"shard-00005\.safetensors is truncated") as caught:
        open_shards(layout, ROWS)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_cut_short_while_a_run_reads_it_is_named(tmp_path):
    layout = write(tmp_path, 8, 4, 4)
    opened = open_shards(layout, ROWS)
    layout.file(0).write_bytes(layout.file(0).read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"shard-00000\.safetensors was cut short"):
        opened.read(torch.tensor([3]))


def test_a_file_that_is_cut_short_is_named_at_once(tmp_path):
    layout = write(tmp_path, 38, 4, 4)
    layout.file(5).write_bytes(layout.file(5).read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"shard-00005\.safetensors is truncated"):
        open_shards(layout, ROWS)


def test_damage_is_found_in_the_row_that_is_read(tmp_path):
    layout = write(tmp_path, 38, 4, 4)
    flip(layout.file(5), -1)  # of b, which lies last, in the last row
    opened = open_shards(layout, ROWS)
    assert opened.read(torch.tensor([20, 21, 22]))["a"].tolist() == [20, 21, 22]
    with pytest.raises(ValueError, match=r"shard-00005\.safetensors is damaged: row 3 .*remove the file"):
        opened.read(torch.tensor([1, 23]))
    flip(layout.file(9), -1)
    assert opened.damaged() == [layout.file(5), layout.file(9)]


def test_no_byte_of_a_shard_changes_unnoticed(tmp_path):
    """But for spaces at the end of the header, and the checksum of the file, which only `damaged` reads."""
    layout = write(tmp_path, 3, 3, 3)
    whole, right = layout.file(0).read_bytes(), read_all(layout)
    unnoticed = []
    for at in range(0, len(whole), 3):
        layout.file(0).write_bytes(whole)
        flip(layout.file(0), at)
        try:
            read = read_all(layout)
        except ValueError:
            continue
        assert all(torch.equal(read[name], right[name]) for name in right)
        assert open_shards(layout, ROWS).damaged() == [layout.file(0)]
        unnoticed.append(whole[at : at + 1])
    assert len(unnoticed) < 30


def test_what_is_written_is_verified(tmp_path, monkeypatch):
    def careless(file, tensors):
        write_safetensors(file, tensors)
        flip(file, -1)

    monkeypatch.setattr("dmdistill.data.shards.write_safetensors", careless)
    with pytest.raises(ValueError, match=r"shard-00000\.safetensors is truncated, damaged"):
        write(tmp_path, 4, 4, 4)


def test_a_shard_of_an_earlier_version_is_verified_when_it_is_first_read(tmp_path):
    layout = write(tmp_path, 12, 4, 4)
    for shard in range(3):
        tensors = {name: tensor.clone() for name, tensor in load_file(layout.file(shard)).items() if name in ROWS}
        write_safetensors(layout.file(shard), tensors)
    assert read_all(layout)["a"].tolist() == list(range(12))
    flip(layout.file(1), -1)
    opened = open_shards(layout, ROWS)
    assert opened.read(torch.tensor([3, 8]))["a"].tolist() == [3, 8]
    with pytest.raises(ValueError, match=r"shard-00001\.safetensors is truncated, damaged"):
        opened.read(torch.tensor([4]))
    save_file({name: tensor[:3].contiguous() for name, tensor in tensors.items()}, layout.file(1))
    with pytest.raises(ValueError, match=r"shard-00001\.safetensors holds .*remove it"):
        open_shards(layout, ROWS)


def test_checksums_are_of_rows():
    tensors = {"x": torch.randn(5, 2, 3).bfloat16(), "n": torch.arange(5)}
    checksums = row_checksums(tensors)
    assert torch.equal(row_checksums({name: tensor[2:4] for name, tensor in tensors.items()}), checksums[2:4])
    tensors["n"][3] += 1
    assert (row_checksums(tensors) != checksums).tolist() == [False, False, False, True, False]
    assert row_checksums({"x": torch.empty(0, 2, 3)}).shape == (0,)
