"""Captions computed from images, and what is measured back."""

import zipfile

import pytest
import torch

from dmdistill.data.fashion_captions import (
    ATTRIBUTES,
    CLASS_WORDS,
    PHRASINGS,
    measure,
    phrase,
    read_caption,
    write_captioned_images,
    write_captions,
)
from dmdistill.data.idx_images import load_idx_images
from dmdistill.data.image_sources import open_images


@pytest.fixture
def data(idx_folder):
    return load_idx_images(idx_folder)


def rectangle(width: int, *, brightness: float, change: float = 0.0):
    """An upright rectangle whose columns are brighter and darker by turns."""
    x = torch.full((1, 1, 28, 28), -1.0)
    stripes = torch.tensor([brightness + change / 2, brightness - change / 2]).repeat(14)[:width]
    x[..., 4:24, 6 : 6 + width] = 2 * stripes - 1
    return x


def test_attributes_are_measured_over_the_foreground():
    values = measure(torch.cat([rectangle(10, brightness=0.4), rectangle(16, brightness=0.6, change=0.2)]))
    torch.testing.assert_close(values["brightness"], torch.tensor([0.4, 0.6]))
    assert values["width"].tolist() == [10, 16]
    pairs_across, pairs_down = 20 * 15, 19 * 16  # of which the first differ by 0.2, the others do not
    expected = torch.tensor([0.0, 0.2 * pairs_across / (pairs_across + pairs_down)])
    torch.testing.assert_close(values["texture"], expected, rtol=1e-4, atol=1e-6)


def test_padding_and_empty_images_change_nothing():
    x = rectangle(12, brightness=0.5, change=0.3)
    padded = torch.nn.functional.pad(x, [2] * 4, value=-1.0)
    for key, value in measure(x).items():
        torch.testing.assert_close(measure(padded)[key], value)
    assert all(value.tolist() == [0.0] for value in measure(torch.full((1, 1, 8, 8), -1.0)).values())


@pytest.mark.parametrize(
    ("key", "values", "words"),
    [
        ("brightness", [0.1, 0.49, 0.53, 0.6, 0.7, 0.9], ["dark", "dark", None, "grey", None, "bright"]),
        ("width", [3.0, 13.0, 15.0], ["narrow", None, "wide"]),
        ("texture", [0.05, 0.1, 0.2], ["plain", None, "patterned"]),
    ],
)
def test_words_name_what_is_clear(key, values, words):
    attribute = ATTRIBUTES[key]
    assert [attribute.clear_word(value) for value in values] == words
    nearest = [attribute.words[number] for number in attribute.nearest(torch.tensor(values))]
    assert all(word in (None, near) for word, near in zip(words, nearest, strict=True))


def test_every_caption_is_true_of_its_image(data):
    values, count = measure(data.images.float() / 127.5 - 1), 0
    for row, text in enumerate(write_captions(data)):
        caption = read_caption(text)
        assert caption.label == data.labels[row]
        for key, word in caption.words.items():
            assert ATTRIBUTES[key].words[ATTRIBUTES[key].nearest(values[key])[row]] == word
            count += 1
    assert count > len(data)


@pytest.mark.parametrize("phrasing", PHRASINGS)
@pytest.mark.parametrize("name", CLASS_WORDS)
def test_captions_are_read_as_they_are_written(name, phrasing):
    for words in ([], ["dark"], ["grey", "wide", "patterned"]):
        text = phrase(name, words, phrasing)
        caption = read_caption(text)
        assert CLASS_WORDS[caption.label] == name
        assert list(caption.words.values()) == words
        assert "{" not in text
        assert " a a" not in text


def test_a_caption_of_other_words_names_nothing():
    caption = read_caption("a painting of the sea")
    assert (caption.label, caption.words) == (None, {})


def test_the_article_fits_the_word():
    assert phrase("ankle boot", [], PHRASINGS[0]) == "an ankle boot"
    assert phrase("bag", ["dark"], PHRASINGS[1]) == "a photo of a dark bag"


def test_the_zip_is_a_captioned_labelled_set_of_padded_images(data, tmp_path):
    files = [tmp_path / "fashion.zip", tmp_path / "again.zip"]
    for file in files:
        write_captioned_images(file, data)
    assert files[0].read_bytes() == files[1].read_bytes()
    source = open_images(str(files[0]))
    rows = [int(name.partition("/")[2].removesuffix(".png")) for name in source.names]
    assert source.shape == (1, 16, 16)
    assert torch.equal(source.images(range(len(source)))[..., 2:-2, 2:-2], data.images[rows])
    texts = list(write_captions(data))
    assert source.captions == [texts[row] for row in rows]
    assert [source.labels.names[label] for label in source.labels.index] == [CLASS_WORDS[data.labels[r]] for r in rows]
    assert source.about == {"name": "fashion-text", "licence": "MIT", "feature_extractor": "fashion-classifier"}


@pytest.mark.parametrize("text", ["[]", "{", '{"name": 5}', "[" * 100_000])
def test_what_a_set_says_of_itself_is_checked(text, tmp_path):
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("about.json", text)
        archive.writestr("one.png", b"")
    assert open_images(str(tmp_path / "some.zip")).about == {"name": "some"}
