"""What `dmdistill info` says of a model."""

import shutil

import pytest

from dmdistill.commands.cli import main
from dmdistill.commands.info.model_description import describe_model
from dmdistill.models.load import load_model
from helpers.edits import edit_json
from helpers.tiny_models import save_student, unet2d


def test_a_pixel_model_is_described(tiny_teacher):
    rows = describe_model(load_model(str(tiny_teacher)))
    assert rows["model"] == "tiny, a teacher"
    assert rows["network"].startswith("SongUNet, ")
    assert rows["images"] == "1 x 8 x 8"
    assert rows["noise schedule"] == "EDM, sigma from 0.002 to 80"
    assert rows["network predicts"] == "the clean image, with EDM preconditioning"
    assert rows["solver"] == "heun, 18 steps, guidance scale 1"
    assert rows["evaluations per image"] == "35"
    assert rows["licence"] == "MIT"
    assert not {"pipeline", "latents"} & rows.keys()


@pytest.mark.parametrize(
    ("family", "pipeline", "schedule", "prediction"),
    [
        ("stable_diffusion", "StableDiffusionPipeline", "variance preserving (VP), 1000 timesteps", "epsilon"),
        ("sd3", "StableDiffusion3Pipeline", "flow matching, shift", "velocity"),
    ],
)
def test_a_latent_model_and_its_student_are_described(family, pipeline, schedule, prediction, tiny_pipeline, tmp_path):
    """By the size of their latents and of their images, which are twice as large in a tiny pipeline."""
    folder = tiny_pipeline(family)
    save_student(str(folder), tmp_path / "student")
    for name in (str(folder), str(tmp_path / "student")):
        model = load_model(name)
        rows = describe_model(model)
        channels, height, width = model.shape
        assert rows["latents"] == f"{channels} x {height} x {width} (images {2 * height} x {2 * width})"
        assert rows["pipeline"] == pipeline
        assert rows["noise schedule"].startswith(schedule)
        assert prediction in rows["network predicts"]
        assert "images" not in rows
        assert ("solver" in rows) == (name == str(folder))
        assert ("distilled" in rows) == (name != str(folder))


def test_a_v_prediction_is_told(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    folder = unet2d(tmp_path / "unet", diffusers.DDIMScheduler(prediction_type="v_prediction"))
    assert describe_model(load_model(str(folder)))["network predicts"] == "v"


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ({"timesteps": [80.0, 2.5], "transition": "ode"}, "at 80 2.5, transition ode"),
        ({"timesteps": [2.5], "transition": "sde"}, "at 2.5"),
        ({}, None),
    ],
)
def test_the_times_of_a_students_steps_are_told(steps, text, tiny_teacher, tmp_path):
    save_student(str(tiny_teacher), tmp_path / "student", **steps)
    rows = describe_model(load_model(str(tmp_path / "student")))
    assert rows.get("steps") == text
    assert rows["evaluations per image"] == str(max(1, len(steps.get("timesteps", []))))


def test_brackets_in_names_are_printed(tiny_teacher, tmp_path, capsys):
    """Names are no markup: neither of a model nor of a metric."""
    folder = shutil.copytree(tiny_teacher, tmp_path / "model")
    edit_json(folder / "config.json", name="[red]tiny[/red]", licence="[/]")
    main(["info", str(folder)])
    printed = capsys.readouterr().out
    assert "[red]tiny[/red], a teacher" in printed
    assert "[/]" in printed
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "seconds": 1.0, "[/bold]": 3.0}\n')
    main(["info", str(run)])
    assert "[/bold]" in capsys.readouterr().out
