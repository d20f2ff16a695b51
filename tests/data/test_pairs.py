"""Pairs on disk: the same whatever the batch, completed after a stop, refused when foreign."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from dmdistill.data.pairs import PairSettings, check_space, make_pairs, open_pairs
from dmdistill.data.seeds import derive_seed
from dmdistill.io.atomic import write_safetensors
from dmdistill.models.load import load_teacher
from helpers.edits import edit_json

SETTINGS = PairSettings(
    teacher="tiny 0",
    conditions="3 classes",
    solver="heun",
    steps=3,
    guidance=1.0,
    seed=5,
    count=20,
    shard_size=8,
    precision="float32",
)
SHAPE = (2, 3, 5)


def draw(n, rng):
    return torch.randn(n, *SHAPE, generator=rng), torch.randint(3, (n,), generator=rng)


def generate(z, index):
    """Generate images as a function of noise and class, in place of a teacher."""
    return (z.cumsum(3) / 4).tanh() + index[:, None, None, None]


def make(folder, settings=SETTINGS, *, batch=8, generate=generate, draw=draw):
    return make_pairs(folder, settings, draw=draw, generate=generate, batch=batch, device=torch.device("cpu"))


def shards(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))}


@pytest.fixture(scope="module")
def tiny(tiny_teacher):
    teacher = load_teacher(str(tiny_teacher))
    return replace(teacher, steps=3)


def of(teacher):
    """Return the arguments of make_pairs for a real teacher."""
    return {
        "draw": lambda n, rng: teacher.sample_noise(n, rng=rng),
        "generate": lambda z, index: teacher.generate(z, teacher.condition(index)),
    }


def test_the_batch_changes_nothing(tiny, tmp_path):
    sets = [make(tmp_path / str(batch), batch=batch, **of(tiny))[range(20)] for batch in (3, 7, 100)]
    for z, y, index in sets[1:]:
        assert torch.equal(z, sets[0][0])
        assert torch.equal(index, sets[0][2])
        torch.testing.assert_close(y, sets[0][1], rtol=2e-3, atol=2e-3)  # fp16 on disk


def test_y_is_the_teachers_image_of_z(tiny, tmp_path):
    pairs = make(tmp_path, **of(tiny))
    assert [x.shape[0] for x in pairs[[]]] == [0, 0, 0]
    z, y, index = pairs[range(20)]
    assert z.shape == (20, 1, 8, 8)
    torch.testing.assert_close(y, tiny.generate(z, tiny.condition(index)), rtol=2e-3, atol=2e-3)


def test_shards_are_their_seeds(tmp_path):
    """Another count leaves the shards before its end as they are; another seed changes all."""
    make(tmp_path / "a")
    make(tmp_path / "b", replace(SETTINGS, count=17))
    make(tmp_path / "c", replace(SETTINGS, seed=6))
    a, b, c = (shards(tmp_path / name) for name in "abc")
    assert list(a) == ["shard-00000.safetensors", "shard-00001.safetensors", "shard-00002.safetensors"]
    assert [a[name] == b[name] for name in a] == [True, True, False]
    assert [a[name] == c[name] for name in a] == [False, False, False]
    assert len(open_pairs(tmp_path / "b")) == 17


def test_a_stopped_set_is_completed_byte_for_byte(tmp_path):
    make(tmp_path / "complete", batch=3)
    calls = []

    def stopping(z, index):
        calls.append(len(z))
        if len(calls) == 5:  # in the second shard, of three batches each
            raise KeyboardInterrupt
        return generate(z, index)

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "stopped", batch=3, generate=stopping)
    assert sorted(file.name for file in (tmp_path / "stopped").iterdir()) == ["pairs.json", "shard-00000.safetensors"]
    with pytest.raises(ValueError, match=r"shard-00001\.safetensors does not exist: .*incomplete.*pairs --out"):
        open_pairs(tmp_path / "stopped")

    calls.clear()
    stamp = (tmp_path / "stopped" / "shard-00000.safetensors").stat().st_mtime_ns

    def counting(z, index):
        calls.append(len(z))
        return generate(z, index)

    made = make(tmp_path / "stopped", batch=3, generate=counting)
    assert calls == [3, 3, 2, 3, 1]  # the second shard and the third, the first as it was
    assert (tmp_path / "stopped" / "shard-00000.safetensors").stat().st_mtime_ns == stamp
    assert shards(tmp_path / "stopped") == shards(tmp_path / "complete")
    assert made.seconds_per_image > 0
    assert len(list((tmp_path / "stopped").iterdir())) == 4  # nothing temporary


def test_a_finished_set_is_only_opened(tmp_path):
    make(tmp_path)
    before = (tmp_path / "pairs.json").read_bytes()
    make(tmp_path, generate=None)
    assert (tmp_path / "pairs.json").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"conditions": "none"},
        {"solver": "ddim"},
        {"steps": 4},
        {"guidance": 2.0},
        {"seed": 6},
        {"teacher": "x", "count": 21},
    ],
)
def test_other_settings_are_refused_by_name(change, tmp_path):
    make(tmp_path)
    before = shards(tmp_path)
    differing = "; ".join(f"{key} {getattr(SETTINGS, key)}, now {value}" for key, value in change.items())
    with pytest.raises(ValueError, match=rf"other settings: {differing}\. "):
        make(tmp_path, replace(SETTINGS, **change))
    assert shards(tmp_path) == before


@pytest.mark.parametrize(("change", "batch"), [({"count": 0}, 8), ({"shard_size": 0}, 8), ({}, 0)])
def test_numbers_below_one_are_refused_before_anything_is_written(change, batch, tmp_path):
    with pytest.raises(ValueError, match="expected 1 or more"):
        make(tmp_path, replace(SETTINGS, **change), batch=batch)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut short", "foreign", "missing", "other tensors", "other shapes", "fewer rows"])
def test_a_spoiled_shard_is_one_clear_line(damage, tmp_path):
    make(tmp_path)
    file = tmp_path / "shard-00001.safetensors"
    good, tensors = file.read_bytes(), {name: tensor.clone() for name, tensor in load_file(file).items()}
    if damage == "cut short":
        file.write_bytes(good[:-7])
    elif damage == "foreign":
        file.write_bytes(b"PK\3\4 not safetensors at all")
    elif damage == "missing":
        file.unlink()
    elif damage == "other tensors":
        save_file({"weight": torch.zeros(3)}, file)
    elif damage == "other shapes":
        save_file(tensors | {"y": tensors["y"][:, :1].contiguous()}, file)
    else:
        save_file({name: tensor[:5].contiguous() for name, tensor in tensors.items()}, file)
    with pytest.raises(ValueError, match=r"shard-00001\.safetensors") as caught:
        open_pairs(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"seconds_per_image": 1, "odd": 2}'])
def test_a_foreign_description_is_one_clear_line(text, tmp_path):
    (tmp_path / "pairs.json").write_text(text)
    for attempt in (lambda: open_pairs(tmp_path), lambda: make(tmp_path)):
        with pytest.raises(ValueError, match=r"pairs\.json") as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["pairs.json"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("shard_size", 0), ("count", "many"), ("guidance", "x"), ("teacher", 3), ("seconds_per_image", "x")],
)
def test_a_description_with_a_value_that_cannot_be_is_named(name, value, tmp_path):
    make(tmp_path)
    edit_json(tmp_path / "pairs.json", **{name: value})
    with pytest.raises(ValueError, match=rf"pairs\.json does not describe pairs: {name} is {value!r}"):
        open_pairs(tmp_path)


@pytest.mark.parametrize(("name", "value"), [("seed", 6), ("guidance", 1.5), ("solver", "ddim"), ("count", 17)])
def test_a_changed_description_is_detected(name, value, tmp_path):
    """One digit of the seed would be another order of the batches."""
    make(tmp_path)
    described = json.loads((tmp_path / "pairs.json").read_text())
    (tmp_path / "pairs.json").write_text(json.dumps(described | {name: value}))
    with pytest.raises(ValueError, match=r"pairs\.json .*checksum"):
        open_pairs(tmp_path)
    del described["crc32"]  # as written by hand
    (tmp_path / "pairs.json").write_text(json.dumps(described))
    assert open_pairs(tmp_path).settings == SETTINGS


def damage_y(folder, *shards):
    """Change the last number of y in some shards, whose headers and sizes stay."""
    for shard in shards:
        file = folder / f"shard-{shard:05d}.safetensors"
        content = bytearray(file.read_bytes())
        content[content.rindex(load_file(file)["y"].numpy().tobytes()[-8:]) + 7] ^= 1
        file.write_bytes(content)


def test_damage_inside_is_found_where_it_is_read_and_by_verifying(tmp_path):
    make(tmp_path)
    damage_y(tmp_path, 0, 2)
    pairs, seen = open_pairs(tmp_path), []
    pairs[[*range(7), *range(8, 19)]]
    for rows in ([1, 7], [19]):
        with pytest.raises(
            ValueError, match=rf"shard-0000{rows[-1] // 8}\.safetensors is damaged: row {rows[-1] % 8} "
        ):
            pairs[rows]
    with pytest.raises(ValueError, match=r"2 damaged files of 3: shard-00000\S+, shard-00002\S+; remove .*pairs --out"):
        pairs.verify(lambda items, name: [seen.append(name), items][1])
    assert seen == ["verifying"]
    for shard in (0, 2):
        (tmp_path / f"shard-{shard:05d}.safetensors").unlink()
    make(tmp_path).verify(lambda items, name: items)


def test_noise_is_rounded_before_the_solver(tmp_path):
    """So that y is the image of the z that is stored, to the rounding of y itself."""
    given = []

    def solver(z, index):
        given.append(z)
        return z * 3 + index[:, None, None, None]

    pairs = make(tmp_path, generate=solver)
    z, y, _ = pairs[range(20)]
    assert torch.equal(z, torch.cat(given))
    assert torch.equal(z, z.half().float())
    assert given[0].dtype == torch.float32
    assert ((y - solver(z, pairs[range(20)][2])) / y).abs().max() <= 2**-11
    assert {name: str(tensor.dtype) for name, tensor in load_file(tmp_path / "shard-00000.safetensors").items()} == {
        "crc32": "torch.int64",
        "index": "torch.int64",
        "y": "torch.float16",
        "z": "torch.float16",
    }


def test_images_beyond_fp16_are_refused(tmp_path):
    with pytest.raises(ValueError, match="more than fp16 holds"):
        make(tmp_path, generate=lambda z, index: z * 1e6)


def test_a_set_with_noise_in_fp32_is_read(tmp_path):
    """As an earlier version wrote it."""
    make(tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items() if name != "crc32"}
        write_safetensors(file, tensors | {"z": tensors["z"].float() + 1e-6})
    z, y, index = open_pairs(tmp_path)[range(20)]
    assert not torch.equal(z, z.half().float())
    torch.testing.assert_close(y, generate(z, index), rtol=2e-3, atol=2e-3)


def test_nan_from_the_solver_is_never_stored(tmp_path):
    with pytest.raises(ValueError, match="NaN, infinity"):
        make(tmp_path, generate=lambda z, index: z / 0)
    assert shards(tmp_path) == {}


def test_every_row_once_an_epoch_in_another_order_each(tmp_path):
    pairs = make(tmp_path)
    rows = {tuple(z.flatten().tolist()): i for i, z in enumerate(pairs[range(20)][0])}

    def visited(steps):
        return [rows[tuple(z.flatten().tolist())] for step in steps for z in pairs[pairs.rows(step, 5)][0]]

    first, second = visited(range(4)), visited(range(4, 8))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first != list(range(20))


def test_a_batch_is_a_function_of_its_step(tmp_path):
    pairs, again = make(tmp_path), open_pairs(tmp_path)
    expected = [pairs[pairs.rows(step, 6)] for step in range(9)]
    for step in (8, 0, 5, 3):
        for mine, theirs in zip(again[again.rows(step, 6)][:2], expected[step][:2], strict=True):
            assert torch.equal(mine, theirs)
        assert torch.equal(again[again.rows(step, 6)][2], expected[step][2])


def test_rows_stay_together(tmp_path):
    """Whatever the walk, y and class are those of z."""
    pairs = make(tmp_path)
    z, y, index = pairs[pairs.rows(7, 6)]
    torch.testing.assert_close(y, generate(z, index), rtol=2e-3, atol=2e-3)
    assert (z.dtype, y.dtype, index.dtype) == (torch.float32, torch.float32, torch.int64)


def test_a_batch_larger_than_the_set_is_the_set(tmp_path):
    pairs = make(tmp_path)
    z, _, _ = pairs[pairs.rows(3, 1000)]
    assert z.shape == (20, *SHAPE)


def test_unconditional_pairs_have_no_labels(tmp_path):
    pairs = make(tmp_path, draw=lambda n, rng: (draw(n, rng)[0], None), generate=lambda z, index: z / 2)
    z, y, index = pairs[pairs.rows(0, 4)]
    assert index is None
    torch.testing.assert_close(y, z / 2, rtol=1e-3, atol=1e-3)
    assert json.loads((tmp_path / "pairs.json").read_text())["solver"] == "heun"


def test_seeds_of_neighbours_differ_and_repeat():
    seeds = [derive_seed(a, b) for a in range(20) for b in range(20)]
    assert len(set(seeds)) == 400
    assert seeds == [derive_seed(a, b) for a in range(20) for b in range(20)]
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_pairs_that_are_made_need_no_room(tmp_path, monkeypatch):
    pairs = make(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    check_space(tmp_path, len(pairs), pairs.shape)
    with pytest.raises(ValueError, match=r"1000000 pairs take .* GB left"):
        check_space(tmp_path / "new" / "folder", 1_000_000, pairs.shape)
