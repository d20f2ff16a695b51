"""The verdict on real runs of a small teacher: a healthy one, and two that are made sick on purpose."""

import pytest
import torch
from PIL import Image

from dmdistill.commands.distill.command import distill
from dmdistill.commands.distill.config import PairOptions, RegressionOptions
from dmdistill.commands.info.run_health import verdict
from dmdistill.commands.options import change
from dmdistill.commands.teach.config import NetworkOptions, TeachConfig
from dmdistill.commands.teach.recipes import EDMRecipe
from dmdistill.core.losses import denoising_loss
from dmdistill.data.image_tensors import LabelledImages
from dmdistill.models.folder import save_model
from dmdistill.training.metrics_log import read_metrics
from helpers.configs import configure, small_distillation
from helpers.runs import skip_figures

pytestmark = pytest.mark.slow
NO_PAIRS = {"pair_count": PairOptions.pair_count, "batch_reg": RegressionOptions.batch_reg}  # as if not given
COUNT = 64  # images in a batch of the teacher's training


def draw_blobs(rng):
    """Round spots of any colour on grey: COUNT 3 8 8."""
    pixels = torch.arange(8.0)
    y, x = (1 + 5 * torch.rand(COUNT, 1, 1, generator=rng) for _ in range(2))
    mask = torch.exp(-((pixels[:, None] - y) ** 2 + (pixels - x) ** 2) / 4)[:, None]
    return 0.9 * mask * (2 * torch.rand(COUNT, 3, 1, 1, generator=rng) - 1) - 0.2 * (1 - mask)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The folder of a teacher of such images, trained for half a minute."""
    torch.manual_seed(0)
    config = configure(TeachConfig, network=NetworkOptions(model_channels=16, channel_mult=(1, 2), num_blocks=1))
    data = LabelledImages(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1), ("a", "b"), licence="MIT")
    teacher, rng = EDMRecipe(config).new_teacher(data), torch.Generator().manual_seed(0)
    denoiser, cond = teacher.denoiser.requires_grad_(True), teacher.condition(torch.arange(COUNT) % 2)
    optimizer = torch.optim.Adam(denoiser.parameters(), 2e-3)
    for step in range(250):
        x, normal = draw_blobs(rng), torch.randn(COUNT, generator=rng)
        t = denoiser.schedule.sample_t(COUNT, rng=rng) if step % 2 else (1.2 * normal - 1.2).exp()
        loss = denoising_loss(denoiser, x, t, torch.randn(x.shape, generator=rng), cond)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    denoiser.requires_grad_(False)
    teacher.config.update(name="blobs", feature_extractor=None)
    folder = tmp_path_factory.mktemp("teacher") / "blobs"
    save_model(folder, teacher, card="A teacher of blobs.")
    return folder


@pytest.fixture
def judge(teacher, tmp_path, monkeypatch):
    """Options -> the verdict on a run with them."""
    skip_figures(monkeypatch)

    def run(**options):
        short = {"batch": 16, "log_every": 5, "evaluate_every": 5, "sample_every": 1000, "save_every": 1000}
        config = small_distillation(teacher=str(teacher), out=tmp_path / "run", ema_halflives=(10.0,), **short)
        distill(change(config, solver_steps=8, lr_decay=False, **options))
        return verdict(read_metrics(config.out), config.optimizer.grad_clip)

    return run


def test_a_run_whose_fake_score_follows_is_healthy(judge):
    pairs = {"lambda_reg": 3.0, "batch_reg": 32, "pair_count": 256, "match_from": 0.5}
    assert judge(steps=60, lr=2e-3, lr_fake=2e-3, **pairs).startswith("healthy so far")


def test_a_generator_that_outruns_its_fake_score_is_named(judge):
    text = judge(method="dmd2", lambda_reg=0.0, **NO_PAIRS, steps=40, lr=1e-2, lr_fake=1e-4)
    assert text.startswith("unhealthy")
    assert "the fake score lags" in text
    assert "raise --fake-steps or --lr-fake" in text
    assert "the brightness drifts" in text


def test_a_discriminator_that_is_always_right_is_named(judge, tmp_path):
    """Real images are white, which the grey of a generator that hardly learns is not."""
    for number in range(16):
        (tmp_path / "white" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (255, 255, 255)).save(tmp_path / "white" / "ab"[number % 2] / f"{number}.png")
    gan = {"data": str(tmp_path / "white"), "discriminator_weight": 1.0, "lr_fake": 5e-3, "grad_clip": 100.0}
    text = judge(method="dmd2", lambda_reg=0.0, **NO_PAIRS, steps=40, fake_steps=2, lr=1e-6, **gan)
    assert "the discriminator is right of" in text
    assert "lower --discriminator-weight" in text
