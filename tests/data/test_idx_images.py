"""IDX sets: Fashion-MNIST by its pixels, any other by what its labels say."""

import gzip

import pytest
import torch

from dmdistill.data.idx_images import FASHION_CLASSES, FASHION_SHA256, is_idx_folder, load_idx_images, read_idx
from dmdistill.data.image_sources import open_images
from dmdistill.data.training_set import load_labelled_images


@pytest.fixture
def write_set(tmp_path, idx_writer, rng):
    """Return a writer of sets of random images under the official names."""

    def write(name, shape=(28, 28), labels=(0, 10)):
        folder = tmp_path / name
        folder.mkdir()
        for part, count in (("train", 60), ("t10k", 20)):
            images = torch.randint(256, (count, *shape), generator=rng, dtype=torch.uint8)
            idx_writer(folder / f"{part}-images-idx3-ubyte.gz", images)
            values = torch.randint(*labels, (count,), generator=rng, dtype=torch.uint8)
            idx_writer(folder / f"{part}-labels-idx1-ubyte.gz", values)
        return folder

    return write


def test_fashion_is_known_by_its_pixels(idx_folder):
    for train in (True, False):
        data = load_idx_images(idx_folder, train=train)
        assert (data.name, data.licence, data.names) == ("fashion", "MIT", FASHION_CLASSES)
        assert data.feature_extractor == "fashion-classifier"
    assert len(FASHION_SHA256) >= 4


@pytest.mark.parametrize("shape", [(28, 28), (20, 28), (12, 12)])
def test_another_set_has_its_folders_name_and_no_classifier(shape, write_set):
    folder = write_set("digits", shape)
    data = load_labelled_images(folder)
    assert (data.name, data.licence, data.feature_extractor) == ("digits", "unknown", None)
    assert data.images.shape == (60, 1, *shape)
    assert data.names == tuple(f"class {i}" for i in range(10))
    assert torch.equal(data.labels, read_idx(folder / "train-labels-idx1-ubyte.gz").long())


def test_labels_need_not_count_from_zero(write_set, idx_writer):
    """EMNIST's letters are 1 to 26. Both parts have the classes of both, though one lacks some."""
    folder = write_set("letters", labels=(1, 4))
    idx_writer(folder / "t10k-labels-idx1-ubyte.gz", torch.tensor([3, 7] * 10, dtype=torch.uint8))
    data, held_out = load_idx_images(folder), load_idx_images(folder, train=False)
    assert data.names == held_out.names == ("class 1", "class 2", "class 3", "class 7")
    assert torch.equal(data.labels, read_idx(folder / "train-labels-idx1-ubyte.gz").long() - 1)
    assert held_out.labels.tolist() == [2, 3] * 10


@pytest.mark.parametrize("sign", "-.")
def test_files_need_not_be_gzipped(sign, write_set):
    folder = write_set("plain")
    before = load_idx_images(folder)
    for file in list(folder.iterdir()):
        (folder / file.stem.replace("-idx", f"{sign}idx")).write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    assert is_idx_folder(folder)
    assert torch.equal(load_idx_images(folder).images, before.images)
    assert torch.equal(open_images(str(folder)).images(range(60)), before.images)


def test_a_file_that_unpacks_to_gigabytes_is_refused(tmp_path):
    file = tmp_path / "x.gz"
    with gzip.open(file, "wb") as stream:
        stream.write(b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in (100, 1000, 1000)))
        for _ in range(100):
            stream.write(bytes(1_000_000))
    with pytest.raises(ValueError, match=r"x\.gz .*would unpack to 100000000"):
        read_idx(file)


@pytest.mark.parametrize("head", [b"", b"\0\0", b"\0\0\x08\x00", b"\0\0\x08\xff" + b"\xff" * 1020, b"\0\0\x08\x03\0\0"])
def test_headers_that_lie_are_refused(head, tmp_path):
    for file in (tmp_path / "x", tmp_path / "x.gz"):
        file.write_bytes(gzip.compress(head) if file.suffix else head)
        with pytest.raises(ValueError, match=f"{file.name} "):
            read_idx(file)


@pytest.mark.parametrize("shape", [(7,), (4, 3, 5), (2, 3, 5, 4)])
def test_idx_files_are_read_whole(shape, tmp_path, idx_writer, rng):
    values = torch.randint(256, shape, generator=rng, dtype=torch.uint8)
    idx_writer(tmp_path / "x.gz", values)
    assert torch.equal(read_idx(tmp_path / "x.gz"), values)


def spoiled(good: bytes) -> dict[str, bytes]:
    """Spoil a good file's bytes in every way met in practice."""
    plain = gzip.decompress(good)
    return {
        "download cut short": good[: len(good) // 2],
        "damaged": good[:40] + bytes(b ^ 0xFF for b in good[40:60]) + good[60:],
        "not gzip": b"<html>404</html>",
        "empty": b"",
        "empty inside": gzip.compress(b""),
        "only the header": gzip.compress(plain[:6]),
        "data cut short": gzip.compress(plain[:-1]),
        "data too long": gzip.compress(plain + b"\0"),
        "another type": gzip.compress(b"\0\0\x0d" + plain[3:]),
        "foreign": gzip.compress(b"hello world, this is text"),
    }


@pytest.mark.parametrize("damage", spoiled(gzip.compress(b"\0" * 99)))
def test_spoiled_idx_files_are_one_clear_line(damage, tmp_path, idx_writer, rng):
    file = tmp_path / "x.gz"
    idx_writer(file, torch.randint(256, (9, 5, 6), generator=rng, dtype=torch.uint8))
    file.write_bytes(spoiled(file.read_bytes())[damage])
    with pytest.raises(ValueError, match=r"x\.gz (cannot be read as|is not) an IDX file") as caught:
        read_idx(file)
    assert "\n" not in str(caught.value)


def test_the_data_set_is_images_with_their_labels(idx_folder):
    for train, count in ((True, 200), (False, 60)):
        data = load_idx_images(idx_folder, train=train)
        assert data.images.shape == (len(data), 1, 12, 12) == (count, 1, 12, 12)
        assert (data.images.dtype, data.labels.dtype) == (torch.uint8, torch.int64)
        part = "train" if train else "t10k"
        assert torch.equal(data.images[:, 0], read_idx(idx_folder / f"{part}-images-idx3-ubyte.gz"))
        assert torch.equal(data.labels, read_idx(idx_folder / f"{part}-labels-idx1-ubyte.gz").long())
        assert len(data.names) == 10


def test_missing_and_mismatched_files_are_named(tmp_path, idx_writer):
    with pytest.raises(ValueError, match=r"no train-images-idx3-ubyte\.gz in .*expected all IDX files"):
        load_idx_images(tmp_path)
    idx_writer(tmp_path / "train-images-idx3-ubyte.gz", torch.zeros(4, 2, 3, dtype=torch.uint8))
    idx_writer(tmp_path / "train-labels-idx1-ubyte.gz", torch.zeros(5, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\(4, 2, 3\) and labels \(5,\)"):
        load_idx_images(tmp_path)
