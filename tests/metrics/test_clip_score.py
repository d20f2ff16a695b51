"""The CLIP score with a tiny CLIP of random weights: what the model gets decides it."""

import pytest
import torch

from dmdistill.metrics.clip_score import load_clip
from helpers.tiny_pipelines import clip_tokenizer, clip_vocabulary

PROMPTS = ["a red square", "blue circle", "red", "a very very long prompt of many more tokens than sixteen"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CLIPModel of transformers, saved: images of 12 x 12, prompts of 16 tokens."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(0)
    end = clip_vocabulary()["<|endoftext|>"]
    size = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = size | {"vocab_size": len(clip_vocabulary()), "max_position_embeddings": 16, "eos_token_id": end}
    vision = size | {"image_size": 12, "patch_size": 4}
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=10)).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    side = {"height": 12, "width": 12}
    CLIPImageProcessor(size={"shortest_edge": 12}, crop_size=side).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(folder):
    return load_clip(folder)


def draw(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_cosines_of_the_models_own_embeddings(clip):
    images = draw(4, 3, 12, 12)  # of the model's size: only normalised
    mean, std = (
        torch.tensor(value).reshape(3, 1, 1) for value in (clip.processor.image_mean, clip.processor.image_std)
    )
    expected = []
    for image, prompt in zip(images, PROMPTS, strict=True):
        tokens = clip.tokenizer(prompt, truncation=True, max_length=16, return_tensors="pt")
        with torch.no_grad():
            answer = clip.model(pixel_values=(image[None] / 255 - mean) / std, **tokens)
        expected.append(100 * torch.cosine_similarity(answer.image_embeds, answer.text_embeds).clamp(min=0))
    torch.testing.assert_close(clip(images, PROMPTS), torch.cat(expected), atol=1e-4, rtol=1e-4)
    assert (clip(images, PROMPTS) >= 0).all()


def test_agrees_with_torchmetrics(clip):
    """Of pictures of any size, resized and cropped by the model's processor; an image at a time, as it means first."""
    multimodal = pytest.importorskip("torchmetrics.multimodal.clip_score")
    metric = multimodal.CLIPScore(lambda: (Model(clip), Processor(clip)))
    metric.requires_grad_(False)
    for seed in range(6):
        images = draw(1, 3, 20, 15, seed=seed)
        theirs = float(metric(images, [PROMPTS[seed % 3]]))
        assert float(clip(images, [PROMPTS[seed % 3]])) == pytest.approx(theirs, abs=1e-3)


class Model(torch.nn.Module):
    """transformers' CLIPModel, whose features newer versions wrap."""

    def __init__(self, clip):
        super().__init__()
        self.model, self.config = clip.model, clip.model.config

    def get_image_features(self, pixels):
        features = self.model.get_image_features(pixel_values=pixels)
        return getattr(features, "pooler_output", features)

    def get_text_features(self, tokens, mask):
        features = self.model.get_text_features(input_ids=tokens, attention_mask=mask)
        return getattr(features, "pooler_output", features)


class Processor:
    """transformers' CLIPProcessor, which asks for torchvision."""

    def __init__(self, clip):
        self.clip, self.tokenizer = clip, clip.tokenizer

    def __call__(self, text=None, images=None, **options):
        found = {}
        if text is not None:
            found |= self.clip.tokenizer(text, padding=True, return_tensors="pt")
        if images is not None:
            found |= self.clip.processor(images, return_tensors="pt", input_data_format="channels_first")
        return found


def test_batches_and_grey_do_not_matter(clip):
    grey = draw(3, 1, 14, 19)
    whole = clip(grey, PROMPTS[:3])
    torch.testing.assert_close(whole, clip(grey.expand(-1, 3, -1, -1), PROMPTS[:3]))
    singly = torch.cat([clip(grey[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(whole, singly, atol=1e-4, rtol=1e-4)


def test_one_line_for_what_is_no_clip(clip, tmp_path):
    with pytest.raises(ValueError, match="2 images and 1 prompts"):
        clip(draw(2, 3, 12, 12), ["red"])
    with pytest.raises(ValueError, match="expected uint8"):
        clip(draw(1, 3, 12, 12).float(), ["red"])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be loaded as a CLIP model") as caught:
        load_clip(tmp_path)
    assert "\n" not in str(caught.value)
