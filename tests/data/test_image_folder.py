"""Image files as a viewer shows them, in natural order, and hostile ones refused in a line and within bounds."""

import copy
import io
import os
import struct
import subprocess
import sys
import threading
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from dmdistill.data.image_decoding import MAX_PIXELS
from dmdistill.data.image_names import natural_key
from dmdistill.data.image_sources import is_images, open_images

BAD_EXIF = b"Exif\0\0II*\0\xff\xff\xff\x7f nonsense"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def pixels(rng):
    """Seven images of 6 x 5 x 3 in blocks that JPEG hardly changes."""
    return torch.randint(256, (7, 6, 5, 3), generator=rng, dtype=torch.uint8).numpy()


def save(file, array, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file, **options)


def everything(folder):
    source = open_images(str(folder))
    return source.images(range(len(source))).permute(0, 2, 3, 1).numpy()


def zip_of(folder, file):
    with zipfile.ZipFile(file, "w") as archive:
        for one in sorted(folder.rglob("*")):
            if one.is_file():
                archive.write(one, one.relative_to(folder))
    return file


def refused(folder, match):
    with pytest.raises(ValueError, match=match) as caught:
        everything(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif", ".webp"])
def test_images_are_turned_as_their_exif_data_say(orientation, ending, tmp_path):
    """A picture with another colour in each corner, stored so that a viewer shows it upright."""
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16, 0] = upright[:8, 16:, 1] = upright[8:, 16:, 2] = 255
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # of PIL's transpositions
    stored = Image.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(inverse[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = (
        {"quality": 100, "subsampling": 0} if ending == ".jpg" else {"lossless": True} if ending == ".webp" else {}
    )
    stored.save(tmp_path / f"x{ending}", exif=exif, **options)
    found = everything(tmp_path)
    assert found.shape == (1, 16, 32, 3)
    assert np.abs(found[0].astype(int) - upright).max() < 8


def test_damaged_exif_data_say_nothing(pixels, tmp_path):
    save(tmp_path / "x.png", pixels[0], exif=BAD_EXIF)
    assert np.array_equal(everything(tmp_path), pixels[:1])


def test_transparent_pixels_are_white_whatever_colour_they_hide(pixels, rng, tmp_path):
    alpha = torch.randint(2, (7, 6, 5, 1), generator=rng).numpy().astype(np.uint8) * 255
    for i in range(7):
        save(tmp_path / "hidden" / f"{i}.png", np.concatenate([pixels[i], alpha[i]], 2))
        save(tmp_path / "grey" / f"{i}.png", np.concatenate([pixels[i][..., :1], alpha[i]], 2))
    expected = np.where(alpha > 0, pixels, 255)
    assert np.array_equal(everything(tmp_path / "hidden"), expected)
    assert np.array_equal(everything(tmp_path / "grey"), expected[..., :1])


def test_a_palettes_transparent_colour_is_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "x.png", transparency=1)
    assert everything(tmp_path)[0].tolist() == [[[10, 20, 30], [255] * 3], [[255] * 3, [10, 20, 30]]]


def test_half_transparent_pixels_are_mixed_with_white(tmp_path):
    save(tmp_path / "x.png", np.full((2, 3, 4), (0, 100, 200, 51), np.uint8))
    assert np.abs(everything(tmp_path)[0, 0, 0].astype(int) - [204, 224, 244]).max() <= 1


def test_every_ending_is_read(pixels, tmp_path):
    endings = {
        "png": "PNG",
        "jpe": "JPEG",
        "jfif": "JPEG",
        "JPEG": "JPEG",
        "webp": "WEBP",
        "bmp": "BMP",
        "avif": "AVIF",
    }
    for i, (ending, kind) in enumerate(endings.items()):
        save(tmp_path / f"{i}.{ending}", np.kron(pixels[i], np.ones((8, 8, 1), np.uint8)), format=kind)
    assert len(everything(tmp_path)) == len(endings)


def test_names_are_in_natural_order(tmp_path):
    names = ["a.png", "a2/b1.png", "a2/b10.png", "a10/b2.png", "img1.png", "img2.png", "img10.png", "img010b.png"]
    assert sorted(names, key=natural_key) == [
        *("a2/b1.png", "a2/b10.png", "a10/b2.png", "a.png"),
        *("img1.png", "img2.png", "img10.png", "img010b.png"),
    ]
    for i in range(12):
        save(tmp_path / "photos" / f"{i}.png", np.full((2, 3), i, np.uint8))
    for place in (tmp_path / "photos", zip_of(tmp_path / "photos", tmp_path / "x.zip")):
        assert everything(place)[:, 0, 0, 0].tolist() == list(range(12))


def test_hidden_files_and_folders_are_no_data(pixels, tmp_path):
    folder = tmp_path / ".hidden above" / "photos"  # of the folder itself nothing is hidden
    for i in range(3):
        save(folder / "cats" / f"{i}.png", pixels[i])
        for place in ("cats/.ipynb_checkpoints", ".thumbnails/deep", "__MACOSX/cats", "cats/@eaDir"):
            save(folder / place / f"{i}.png", pixels[i])
        save(folder / f".{i}.png", pixels[i])
    (folder / "folder.png").mkdir()
    archive = zip_of(folder, tmp_path / "x.zip")
    for place in (folder, archive):
        assert np.array_equal(everything(place), pixels[:3])
    with zipfile.ZipFile(archive, "a") as zipped:
        zipped.write(folder / "cats" / "0.png", "cats\\.hidden\\3.png")  # as some programs write names
    assert len(everything(archive)) == 3
    for file in (folder / "cats").glob("*.png"):
        file.unlink()
    refused(folder, "holds no images")
    assert not is_images(str(folder))


def test_linked_files_and_folders_are_followed_once(pixels, tmp_path):
    save(tmp_path / "elsewhere" / "1.png", pixels[1])
    save(tmp_path / "photos" / "0.png", pixels[0])
    (tmp_path / "photos" / "linked").symlink_to("../elsewhere")
    (tmp_path / "photos" / "2.png").symlink_to("0.png")
    (tmp_path / "photos" / "up").symlink_to("..")
    (tmp_path / "elsewhere" / "around").symlink_to("../photos")
    assert open_images(str(tmp_path / "photos")).names == ["0.png", "2.png", "linked/1.png"]


@pytest.mark.parametrize("kind", ["pipe", "device", "dangling link"])
def test_what_is_no_regular_file_is_refused(kind, pixels, tmp_path):
    save(tmp_path / "photos" / "0.png", pixels[0])
    odd = tmp_path / "photos" / "1.png"
    if kind == "pipe":
        os.mkfifo(odd)
    else:
        odd.symlink_to("/dev/zero" if kind == "device" else "nothing")
    refused(tmp_path / "photos", r"1 of 2 images cannot be read, first 1\.png: .*(no regular|No such) file")
    source = open_images(str(tmp_path / "photos"), skip_corrupt=True)
    assert len(source.images(range(2))) == 1
    assert len(source.digest()) == 64


def test_a_pipe_called_zip_is_refused(tmp_path):
    os.mkfifo(tmp_path / "x.zip")
    refused(tmp_path / "x.zip", r"x\.zip holds no images")


def png(width, height):
    """Return a PNG whose header claims so many pixels, with two rows of them."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(2 * width + 2))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8193, 13_000, 30_000])
def test_an_image_of_too_many_pixels_is_refused(side, tmp_path):
    (tmp_path / "x.png").write_bytes(png(side, side))
    assert side * side > MAX_PIXELS
    refused(tmp_path, r"x\.png: .* pixels")


def test_pillow_warns_of_nothing(pixels, tmp_path):
    """What is wrong is said in a line or does not matter. In a process of its own: pytest shows all warnings."""
    save(tmp_path / "0.png", pixels[0], exif=BAD_EXIF)
    (tmp_path / "1.png").write_bytes(png(13_000, 13_000))
    code = (
        "import sys\nfrom dmdistill.data.image_sources import open_images\n"
        "open_images(sys.argv[1], skip_corrupt=True).images(range(2))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def spoiled_zip(folder, kind):
    file = folder / "x.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        content = bytes(300 << 20 if kind == "huge" else 100 << 20 if kind == "bomb" else 10)
        archive.writestr("x.png", content)
    data = file.read_bytes()
    central = data.index(b"PK\x01\x02")
    changes = {"version": (6, 99), "compression": (10, 97), "encrypted": (8, 1)}
    if kind in changes:
        at, value = changes[kind]
        data = data[: central + at] + struct.pack("<H", value) + data[central + at + 2 :]
        if kind != "version":
            data = data[: at - 2] + struct.pack("<H", value) + data[at:]
    file.write_bytes(data)
    return file


@pytest.mark.parametrize("kind", ["bomb", "huge", "version", "compression", "encrypted"])
def test_a_zip_that_cannot_be_unpacked_is_refused(kind, tmp_path):
    refused(spoiled_zip(tmp_path, kind), r"x\.zip.*(unpack|at most|version|compression|encrypted)")


def test_entries_on_top_of_each_other_are_refused(tmp_path):
    """A thousand entries of one 1-MB block, which alone would pass: a file of 100 kB that takes a gigabyte's time."""
    file = tmp_path / "x.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", bytes(1 << 20))
        for i in range(1, 1000):
            entry = copy.copy(archive.getinfo("0.png"))
            entry.filename = f"{i}.png"
            archive.filelist.append(entry)
            archive.NameToInfo[entry.filename] = entry
    refused(file, r"x\.zip cannot be read as a zip: .* would unpack to 1048576000")


def test_a_bomb_beside_dataset_json_is_refused(pixels, tmp_path):
    save(tmp_path / "photos" / "0.png", pixels[0])
    archive = zip_of(tmp_path / "photos", tmp_path / "x.zip")
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("dataset.json", bytes(100 << 20))
    with pytest.raises(ValueError, match=r"dataset\.json .*unpack"):
        _ = open_images(str(archive)).labels


def test_large_images_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    from dmdistill.data import image_decoding

    monkeypatch.setattr(image_decoding, "LARGE_BYTES", 10)
    for i in range(8):
        save(tmp_path / f"{i}.png", np.full((4, 4), i, np.uint8))
    running, most, original = [], [], image_decoding.turn

    def counted(image):
        running.append(threading.get_ident())
        most.append(len(running))
        turned = original(image)
        running.pop()
        return turned

    monkeypatch.setattr(image_decoding, "turn", counted)
    assert everything(tmp_path)[:, 0, 0, 0].tolist() == list(range(8))
    assert max(most) == 1


def test_foreign_content_is_named(tmp_path):
    (tmp_path / "x.png").write_bytes(io.BytesIO(b"GIF89a" + bytes(100)).getvalue())
    refused(tmp_path, r"1 of 1 images cannot be read, first x\.png")
