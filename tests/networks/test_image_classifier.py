import pytest
import torch
import torch.nn.functional as F

from dmdistill.networks.image_classifier import Classifier


def build(**kwargs):
    torch.manual_seed(0)
    return Classifier(**({"in_channels": 3, "classes": 7, "width": 32} | kwargs))


@pytest.mark.parametrize("shape", [(2, 3, 28, 29), (5, 1, 15, 33), (1, 4, 64, 31)])
def test_shapes_where_batch_channels_height_and_width_all_differ(shape):
    model = build(in_channels=shape[1]).eval()
    x = torch.rand(shape) * 2 - 1
    assert model.features(x).shape == (shape[0], model.num_features) == (shape[0], 128)
    assert model(x).shape == (shape[0], 7)
    torch.testing.assert_close(model(x), model.head(model.features(x)))


def test_is_small():
    assert 0.3e6 < sum(p.numel() for p in build(in_channels=1, classes=10).parameters()) < 0.5e6


def test_images_are_judged_one_by_one_in_evaluation():
    model, x = build().eval(), torch.rand(6, 3, 28, 27) * 2 - 1
    torch.testing.assert_close(model.features(x), torch.cat([model.features(image[None]) for image in x]))


def test_memory_format_changes_nothing():
    model, x = build().eval(), torch.rand(3, 3, 28, 27) * 2 - 1
    usual = model(x)
    last = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(usual, last)


def test_every_parameter_learns_and_the_classes_are_told_apart():
    """Stripes at three angles, under noise, are learnt in a few steps and recognised on images not seen."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(14.0), torch.arange(12.0), indexing="ij")
    stripes = torch.stack([rows.sin(), columns.sin(), (rows + columns).sin()])[:, None]

    def draw(n):
        labels = torch.randint(3, (n,), generator=generator)
        return (stripes[labels] + 0.5 * torch.randn(n, 1, 14, 12, generator=generator)).clamp(-1, 1), labels

    model = build(in_channels=1, classes=3, width=8)
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(20):
        x, labels = draw(24)
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []
    x, labels = draw(100)
    assert (model.eval()(x).argmax(1) == labels).double().mean() > 0.95


def test_dropout_is_of_training_alone():
    model, x = build(dropout=0.5), torch.rand(4, 3, 12, 13)
    model.eval()
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.features(x), model.features(x))
