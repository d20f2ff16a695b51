"""Labels and captions: each image has its own, whichever way the set says it."""

import csv
import io
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from dmdistill.data.image_sources import is_images, open_images
from dmdistill.data.training_set import load_labelled_images


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path / "cache"))


def png(grey):
    buffer = io.BytesIO()
    Image.fromarray(np.full((3, 4), grey, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(place, names, extra=None):
    """Pictures, each of one grey, which is its place among these names, in a folder or zip; other files beside them."""
    files = {name: png(i) for i, name in enumerate(names)} | {k: v.encode() for k, v in (extra or {}).items()}
    if place.suffix == ".zip":
        with zipfile.ZipFile(place, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    for name, content in files.items() if place.suffix != ".zip" else []:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return place


def greys(source):
    """Numbers of the pictures, in the order of the set."""
    return source.images(range(len(source)))[:, 0, 0, 0].tolist()


def by_picture(source, values):
    """Values by the number of the picture."""
    return dict(zip(greys(source), values, strict=True))


def read_labels(place):
    source = open_images(str(place))
    assert source.labels is not None
    assert source.labels.index.dtype == torch.int64
    return by_picture(source, [source.labels.names[i] for i in source.labels.index]), source.labels.names


PLACES = pytest.mark.parametrize("place", ["set", "set.zip"])
CLASS_FOLDERS = ["dog/2.png", "cat/10.png", "dog/deep/1.png", "ant/9.png", "cat/9.png"]


@PLACES
@pytest.mark.parametrize("root", ["", "photos/", "photos/train/"])
def test_class_folders_are_in_sorted_order(place, root, tmp_path):
    names = [root + name for name in CLASS_FOLDERS]
    found, classes = read_labels(write(tmp_path / place, names))
    assert classes == ("ant", "cat", "dog")
    assert found == {0: "dog", 1: "cat", 2: "dog", 3: "ant", 4: "cat"}


def test_numbered_folders_are_sorted_as_other_tools_sort_them(tmp_path):
    names = [f"{i}/x.png" for i in (2, 10, 1)]
    assert read_labels(write(tmp_path / "set", names)) == ({0: "2", 1: "10", 2: "1"}, ("1", "10", "2"))


def test_zips_written_with_backslashes_have_class_folders(tmp_path):
    write(tmp_path / "x.zip", ["a\\0.png", "b\\0.png"])
    assert read_labels(tmp_path / "x.zip") == ({0: "a", 1: "b"}, ("a", "b"))


@PLACES
@pytest.mark.parametrize("names", [["0.png", "1.png"], ["a/0.png", "1.png"], ["a/0.png", "a/1.png"], ["a/b/0.png"]])
def test_images_that_are_in_no_class_folder_have_no_labels(place, names, tmp_path):
    assert open_images(str(write(tmp_path / place, names))).labels is None


@PLACES
def test_dataset_json_comes_before_folders(place, tmp_path):
    table = {"labels": [["00000/b.png", 4], ["00001/a.png", 0]]}
    names = ["00001/a.png", "00000/b.png"]
    found, classes = read_labels(write(tmp_path / place, names, {"dataset.json": json.dumps(table)}))
    assert found == {0: "class 0", 1: "class 4"}
    assert classes == tuple(f"class {i}" for i in range(5))


@PLACES
@pytest.mark.parametrize("table", [{"labels": None}, {}])
def test_dataset_json_can_say_that_there_are_no_labels(place, table, tmp_path):
    names = ["00000/a.png", "00001/b.png"]
    assert open_images(str(write(tmp_path / place, names, {"dataset.json": json.dumps(table)}))).labels is None


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (json.dumps({"labels": [["a.png", 0]]}), "1 of 2 images have no label, first b.png"),
        (json.dumps({"labels": [["a.png", 0], ["b.png", -1]]}), "-1 is no label"),
        (json.dumps({"labels": [["a.png", 0], ["b.png", 1.5]]}), "1.5 is no label"),
        (json.dumps({"labels": [["a.png", 0], ["b.png", 10**12]]}), "1000000000000 is no label"),
        (json.dumps({"labels": [["a.png", 0], ["b.png", [0, 1]]]}), r"\[0, 1\] is no label"),
        (json.dumps({"labels": 3}), "not iterable"),
        (json.dumps([1, 2]), "no attribute"),
        ("{", "Expecting"),
    ],
)
@PLACES
def test_what_is_no_table_of_labels_is_one_line(place, text, match, tmp_path):
    source = open_images(str(write(tmp_path / place, ["a.png", "b.png"], {"dataset.json": text})))
    with pytest.raises(ValueError, match=rf"{place}: its dataset\.json gives no labels: .*{match}") as caught:
        _ = source.labels
    assert "\n" not in str(caught.value)


def test_pictures_teach_with_the_classes_of_their_folders(tmp_path):
    data = load_labelled_images(write(tmp_path / "pets", CLASS_FOLDERS))
    assert (data.name, data.names, data.images.shape) == ("pets", ("ant", "cat", "dog"), (5, 1, 3, 4))
    assert by_picture(open_images(str(tmp_path / "pets")), data.labels.tolist()) == {0: 2, 1: 1, 2: 2, 3: 0, 4: 1}
    with pytest.raises(ValueError, match="only the files of CIFAR-10 and IDX files have test images"):
        load_labelled_images(tmp_path / "pets", train=False)
    flat = load_labelled_images(write(tmp_path / "flat", ["0.png", "1.png"]))
    assert (flat.images[:, 0, 0, 0].tolist(), flat.labels.tolist(), flat.names) == ([0, 1], [0, 0], ())


@PLACES
def test_captions_are_read_beside_the_images(place, tmp_path):
    names = ["b/10.png", "b/9.png", "a.tar.png"]
    texts = {"b/10.txt": "ten\n", "b/9.txt": "\ufeff nïne", "a.tar.txt": "a, b", "b/other.txt": "of nothing"}
    source = open_images(str(write(tmp_path / place, names, texts)))
    assert source.captions is not None
    assert by_picture(source, source.captions) == {0: "ten", 1: "nïne", 2: "a, b"}
    assert open_images(str(write(tmp_path / f"other-{place}", names))).captions is None


@PLACES
@pytest.mark.parametrize("texts", [{"b.txt": "b"}, {"a.txt": " \n", "b.txt": "b"}])
def test_images_without_captions_are_counted(place, texts, tmp_path):
    source = open_images(str(write(tmp_path / place, ["a.png", "b.png"], texts)))
    with pytest.raises(ValueError, match=rf"{place}: 1 of 2 images have no caption .*, first a\.png"):
        _ = source.captions


@PLACES
def test_captions_that_are_not_utf8_are_named(place, tmp_path):
    source = open_images(str(write(tmp_path / place, ["a.png"], {"a.txt": "x"})))
    source.open_file = lambda name: io.BytesIO(b"\xff")
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8"):
        _ = source.captions


def write_table(file, columns):
    """A table as its ending says."""
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if file.suffix == ".jsonl":
        file.write_text("\n".join(map(json.dumps, rows)))
    elif file.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns), file)
    else:
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(columns), delimiter="\t" if file.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return file


TABLES = pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])


@TABLES
def test_a_table_lists_images_and_captions_row_by_row(ending, tmp_path):
    """In its order, an image twice, another not at all."""
    write(tmp_path, ["a/0.png", "a/1.png", "b/2.png"])
    columns = {"id": [1, 2, 3], "image": ["b/2.png", "a/0.png", "b/2.png"], "text": ["two, 2", 'a "zero"', "deux"]}
    table = write_table(tmp_path / f"x{ending}", columns)
    source = open_images(str(table))
    assert is_images(str(table))
    assert greys(source) == [2, 0, 2]
    assert source.captions == ["two, 2", 'a "zero"', "deux"]
    assert source.labels is not None
    assert source.labels.index.tolist() == [1, 0, 1]


def test_a_table_of_names_alone_has_no_captions(tmp_path):
    write(tmp_path, ["0.png"])
    source = open_images(str(write_table(tmp_path / "x.csv", {"file_name": ["0.png"], "n": [1]})))
    assert greys(source) == [0]
    with pytest.raises(ValueError, match=r"x\.csv has the columns 'file_name', 'n' .*prompt, caption, text"):
        _ = source.captions


@TABLES
def test_metadata_in_a_folder_has_its_captions(ending, tmp_path):
    write(tmp_path / "set", ["a/0.png", "1.png"])
    columns = {"file_name": ["1.png", "a/0.png", "other.png"], "caption": ["one", "zero", "of nothing"]}
    write_table(tmp_path / "set" / f"metadata{ending}", columns)
    source = open_images(str(tmp_path / "set"))
    assert source.captions is not None
    assert by_picture(source, source.captions) == {0: "zero", 1: "one"}
    write(tmp_path / "set", ["a/0.png", "1.png", "2.png"])
    with pytest.raises(ValueError, match=r"1 of 3 images have no caption, first 2\.png"):
        _ = open_images(str(tmp_path / "set")).captions


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("file_name,text\n", r"x\.csv lists no images"),
        ("file_name,text\n0.png,a\n7.png,b\n8.png,b\n", r"2 of 3 images do not exist, first 7\.png"),
        ("file_name,text\n0.png,a\n ,b\n", "row 2 has no file name, but ''"),
        ("name,text\n0.png,a\n", "columns 'name', 'text' by its first line, which must name one of file_name"),
        ("file_name,text\n0.png,a\n0.png\n", "row 2 has no caption, but None"),
        ("file_name,text\n0.png,a,b\n", "line 2, has 3 fields"),
    ],
)
def test_what_is_no_table_of_images_is_one_line(text, match, tmp_path):
    write(tmp_path, ["0.png"])
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ValueError, match=match) as caught:
        _ = open_images(str(tmp_path / "x.csv")).captions
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"text": "a"}\nb\n', r"x\.jsonl, line 2, is no JSON"),
        ('\n["a"]\n', r"x\.jsonl, line 2, holds a list"),
        ("", "has the columns none"),
        ('{"a": 1, "b": 2}', "has the columns 'a', 'b'; expected prompt, caption, text"),
        ("[" * 100_000, r"x\.jsonl, line 1, is no JSON"),
    ],
)
def test_what_is_no_table_of_json_is_one_line(text, match, tmp_path):
    from dmdistill.data.prompt_files import read_prompts

    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(ValueError, match=match) as caught:
        read_prompts(tmp_path / "x.jsonl")
    assert "\n" not in str(caught.value)


def test_prompts_of_json_lines(tmp_path):
    from dmdistill.data.prompt_files import read_prompts

    (tmp_path / "x.jsonl").write_text('{"id": 1, "text": "a"}\n\n{"text": null}\n{"text": "b\\n"}\n')
    assert read_prompts(tmp_path / "x.jsonl") == ["a", "b"]
