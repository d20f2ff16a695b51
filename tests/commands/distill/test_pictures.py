"""The pictures of a run's report."""

import json

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from dmdistill.commands.distill.command import distill
from dmdistill.commands.distill.pictures import captions, draw_comparison, draw_curves, side_by_side
from dmdistill.core.generators import Generator
from dmdistill.data.image_tensors import make_grid
from dmdistill.models.load import load_model, load_teacher


def test_panels_have_curves_and_axes_that_fit(tmp_path, monkeypatch):
    """A value that was measured once has no panel, but for the distance; a small range is no logarithmic axis."""
    drawn = {}
    save = Figure.savefig

    def record(figure, *words, **named):
        drawn.update({axes.get_title(): (axes.get_yscale(), axes.get_xlim()) for axes in figure.axes})
        save(figure, *words, **named)

    monkeypatch.setattr(Figure, "savefig", record)
    rows = [{"step": 10 * i, "seconds": 1.0, "loss_kl": 1 / i**2, "gradient_fake": 2.0} for i in range(1, 5)]
    rows[-1] |= {"frechet_ema1": 1.95, "gap_0": 0.1, "sample_mean": 0.0}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw_curves(tmp_path)
    scales = {"Frechet distance": "linear", "losses": "log", "gradient norms": "linear"}
    assert {title: scale for title, (scale, _) in drawn.items()} == scales
    assert {limits for _, limits in drawn.values()} == {(0, 1.03 * 40)}


def test_images_of_a_comparison_keep_their_size_and_have_gaps_and_captions(tiny_teacher, tmp_path):
    teacher = load_model(str(tiny_teacher))
    draw_comparison(tmp_path / "x.png", {"teacher": teacher, "student": teacher}, rows=1)
    assert Image.open(tmp_path / "x.png").width > 10 * 90
    picture, middles = side_by_side(torch.zeros(3, 3, 32, 32))
    assert picture.shape == (32, 3 * 34, 3)
    assert (picture[:, 32:34] == 255).all()
    assert middles == [15.5, 49.5, 83.5]
    texts = captions(teacher, 12, letters=15)
    assert len(texts) == 12
    assert texts[0] == teacher.conditions.names[0]


def test_the_first_picture_has_the_teacher_above_its_untrained_student(settings, tiny_teacher):
    config = settings(lambda_reg=0.0, solver_steps=None, report_images=0)
    distill(config)
    teacher = load_teacher(str(tiny_teacher))
    z, cond = teacher.sample_inputs(128, rng=torch.Generator().manual_seed(config.seed + 1))
    z, cond = z[:16], cond[:16]
    own = Generator(teacher.denoiser).sample(z, cond)
    expected = [row for both in zip(teacher.generate(z, cond).split(8), own.split(8), strict=True) for row in both]
    with Image.open(config.out / "samples" / "start.png") as picture:
        assert np.array_equal(picture, make_grid(torch.cat(expected), columns=8))
