"""Images of a latent model in another size than that of its network's training."""

import pytest
import torch
from PIL import Image

from dmdistill.commands.cli import main
from dmdistill.models.load import load_model, load_teacher
from helpers.tiny_pipelines import FAMILIES

COMPUTE = ["--device", "cpu", "--precision", "fp32", "--threads", "1"]
TRAINING = ["--pair-count", "3", "--steps", "2", "--batch", "2", "--batch-reg", "2", "--solver-steps", "2"]
SMALL = [*TRAINING, "--report-images", "2", "--evaluate-images", "2", *COMPUTE]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DMDISTILL_DEBUG", raising=False)


def run(*arguments):
    main([str(argument) for argument in arguments])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_teacher_samples_images_of_another_size(family, tiny_pipeline):
    teacher = load_teacher(str(tiny_pipeline(family)), size=(24, 16))
    assert teacher.shape == (4, 12, 8)
    assert teacher("a red square", count=1).shape == (1, 3, 24, 16)
    with pytest.raises(
        ValueError, match=r"images of 24 x 18 pixels .*: expected multiples of 4 for .*, such as 24 x 1"
    ):
        load_teacher(str(tiny_pipeline(family)), size=(24, 18))


@pytest.mark.parametrize("family", ["stable_diffusion", "flux"])
def test_a_student_keeps_the_size_that_it_was_distilled_at(family, tiny_pipeline, tmp_path):
    """In its own folder, as adapters, and exported, whose card names the size."""
    lora = ["--lora-student", "2"] if family == "flux" else []
    size = ["--height", "24", "--width", "16"]
    run(
        "distill",
        "--teacher",
        tiny_pipeline(family),
        "--prompts",
        prompts(tmp_path),
        *size,
        "--out",
        "run",
        *lora,
        *SMALL,
    )
    run("sample", "run", "--prompt", "a red square", "--count", "1", *COMPUTE)
    width, height = Image.open("samples.png").size  # a grid shows small images larger
    assert (height * 16, height % 24) == (width * 24, 0)
    assert load_model("run").shape == (4, 12, 8)
    run("sample", "run", "--prompt", "a red square", "--count", "1", "--height", "16", "--out", "16.png", *COMPUTE)
    width, height = Image.open("16.png").size
    assert height == width
    run("bench", "run", "--repeats", "1", "--max-batch", "1", *COMPUTE)
    run("export", "run", "out")
    assert "height=24, width=16" in (tmp_path / "out" / "README.md").read_text()
    if not lora:
        student = load_model("run")
        drawn, again = (model("a red square", seed=1) for model in (student, load_model("out")))
        torch.testing.assert_close(drawn, again)


def test_pairs_and_figures_have_the_size(tiny_pipeline, tmp_path, capsys):
    folder = tiny_pipeline("stable_diffusion")
    given = ["--prompts", prompts(tmp_path), "--height", "24", "--width", "16", *COMPUTE]
    run("pairs", "--teacher", folder, "--pair-count", "2", "--solver-steps", "1", "--out", "pairs", *given)
    run("evaluate", folder, "--images", "2", *given)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run("distill", "--teacher", folder, "--prompts", "prompts.txt", "--pairs", "pairs", "--out", "run", *SMALL)
    assert "pairs holds images" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["sample", "evaluate", "distill", "pairs", "plan"])
def test_a_network_of_pixels_has_one_size(command, tiny_teacher, capsys):
    model = [tiny_teacher] if command in ("sample", "evaluate") else ["--teacher", tiny_teacher]
    with pytest.raises(SystemExit) as end:
        run(command, *model, "--height", "64", *COMPUTE)
    error = capsys.readouterr().err
    assert (end.value.code, error.count("\n")) == (2, 1)
    assert "images of 64 x 64 pixels (--height, --width): tiny makes images of " in error


def test_positions_of_sd3_end_somewhere(tiny_pipeline):
    with pytest.raises(ValueError, match="has positions up to 32 pixels a side"):
        load_teacher(str(tiny_pipeline("sd3")), size=(40, 16))


def prompts(folder):
    (folder / "prompts.txt").write_text("a red square\nblue circle\nred\n")
    return folder / "prompts.txt"
