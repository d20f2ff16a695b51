"""Alignment of images with captions of Fashion-MNIST."""

from types import SimpleNamespace

import pytest
import torch

from dmdistill.data.fashion_captions import CLASS_WORDS, write_captions
from dmdistill.data.idx_images import load_idx_images
from dmdistill.metrics.alignment import Alignment


@pytest.fixture
def alignment():
    """With a classifier that takes every image for a bag."""
    return Alignment(
        SimpleNamespace(id="bags", predict=lambda images: torch.full((len(images),), CLASS_WORDS.index("bag")))
    )


def test_all_that_a_prompt_names_counts(alignment):
    image = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    image[..., 4:24, 4:24] = 250  # bright, wide and plain
    prompts = {
        "a bright wide plain bag": 1,
        "bag": 1,
        "bright": 1,
        "": 1,
        "a dark bag": 0,
        "a bright narrow bag": 0,
        "bag, bright, patterned": 0,
        "a bright coat": 0,
    }
    scores = alignment(image.expand(len(prompts), -1, -1, -1), list(prompts))
    assert scores.tolist() == list(prompts.values())


def test_real_images_have_the_attributes_of_their_captions(alignment, idx_folder):
    data = load_idx_images(idx_folder)
    bags = data.labels == CLASS_WORDS.index("bag")
    texts = [text for text, is_bag in zip(write_captions(data), bags, strict=True) if is_bag]
    assert alignment(data.images[bags], texts).mean() == 1


def test_there_is_a_prompt_for_each_image(alignment):
    with pytest.raises(ValueError, match="2 images and 1 prompts"):
        alignment(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), ["bag"])
