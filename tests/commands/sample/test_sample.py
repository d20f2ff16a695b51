"""`dmdistill sample`: which image shows what, where the grid goes, and what is refused."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from dmdistill.commands.cli import main, parse
from dmdistill.commands.options import ComputeOptions
from dmdistill.commands.sample.command import sample
from dmdistill.commands.sample.config import SampleConfig
from dmdistill.models.load import load_teacher
from helpers.tiny_models import save_student

COMPUTE = ["--device", "cpu", "--precision", "fp32", "--threads", "1"]


@pytest.fixture
def student(tiny_teacher, tmp_path):
    return save_student(str(tiny_teacher), tmp_path / "student")


@pytest.mark.parametrize(
    ("arguments", "labels", "prompt"),
    [
        (["--labels", "7", "2"], ("7", "2"), ()),
        (["--labels", "7", "--labels", "coat", "3"], ("7", "coat", "3"), ()),
        (["--class", "7", "--labels", "2"], ("7", "2"), ()),
        (["--prompt", "a cat", "a dog"], (), ("a cat", "a dog")),
        (["--prompt", "a cat", "--prompt", "a dog"], (), ("a cat", "a dog")),
        ([], (), ()),
    ],
)
def test_flags_that_are_given_several_times_are_joined(arguments, labels, prompt):
    _, config = parse(["sample", "x", *arguments])
    assert (config.labels, config.prompt) == (labels, prompt)
    assert config == SampleConfig("x", labels=labels, prompt=prompt)


def test_labels_are_repeated_as_needed(student, tmp_path):
    """Also over the batches of 64."""
    compute = ComputeOptions(device="cpu", precision="fp32", threads=1)
    config = SampleConfig(str(tmp_path / "student"), tmp_path / "x.png", count=70, labels=(7, 2), compute=compute)
    images = sample(config)
    z, _ = student.sample_noise(70, rng=torch.Generator().manual_seed(0))
    expected = student.images(z, student.condition(torch.tensor([7, 2] * 35)))
    torch.testing.assert_close(images, expected, rtol=1e-3, atol=1e-3)


def test_a_teacher_is_sampled_by_its_solver(tiny_teacher, tmp_path):
    compute = ComputeOptions(device="cpu", precision="fp32", threads=1)
    images = sample(SampleConfig(str(tiny_teacher), tmp_path / "x.png", count=5, labels=(7, 2), compute=compute))
    teacher = load_teacher(str(tiny_teacher))
    z, _ = teacher.sample_noise(5, rng=torch.Generator().manual_seed(0))
    expected = teacher.images(z, teacher.condition(torch.tensor([7, 2, 7, 2, 7])))
    torch.testing.assert_close(images, expected, rtol=1e-3, atol=1e-3)


def test_every_class_in_turn_is_the_default(student, tmp_path):
    compute = ComputeOptions(device="cpu", precision="fp32", threads=1)
    images = sample(SampleConfig(str(tmp_path / "student"), tmp_path / "x.png", count=12, compute=compute))
    z, _ = student.sample_noise(12, rng=torch.Generator().manual_seed(0))
    expected = student.images(z, student.condition(torch.tensor([*range(10), 0, 1])))
    torch.testing.assert_close(images, expected, rtol=1e-3, atol=1e-3)


def test_a_row_is_no_wider_than_the_images(student, tmp_path):
    out = tmp_path / "grid.png"
    main(["sample", str(tmp_path / "student"), "--out", str(out), "--count", "2", "--columns", "999999999", *COMPUTE])
    with Image.open(out) as picture:
        assert picture.size == (2 * (2 * 9 - 1), 2 * 8)


def test_the_folder_of_the_grid_is_created(student, tmp_path):
    out = tmp_path / "new" / "folder" / "grid.PNG"
    main(["sample", str(tmp_path / "student"), "--out", str(out), "--count", "3", "--columns", "2", *COMPUTE])
    with Image.open(out) as picture:
        assert picture.size == (2 * (2 * 9 - 1), 2 * (2 * 9 - 1))  # two columns and rows of 8 pixels, zoomed


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--labels", "3", "99"], "--labels 3 99: tiny-student has no class 99, expected 0 to 9"),
        (["--labels", "-1"], "no class -1"),
        (["--labels", "jackal"], "--labels jackal: tiny-student has no class jackal"),
        (["--prompt", "a cat"], "--prompt"),
        (["--prompt", "a cat", "--prompts", "cats.txt"], "--prompts cats.txt"),
        (["--prompt", " "], "--prompt"),
        (["--columns", "0"], "--columns 0"),
        (["--count", "100000000000000000000"], "--count 100000000000000000000"),
        (["--out", "grid.jpg"], "--out grid.jpg"),
    ],
)
def test_impossible_settings_are_refused(arguments, match, student, tmp_path, monkeypatch, error_line):
    monkeypatch.chdir(tmp_path)
    assert match in error_line("sample", tmp_path / "student", *COMPUTE, *arguments)
    assert not list(tmp_path.glob("*.png"))


def test_an_unconditional_model_takes_no_labels(edm, tmp_path, error_line):
    from dmdistill.networks.song_unet import SongUNet

    settings = {"img_resolution": 8, "in_channels": 3, "out_channels": 3, "label_dim": 0, "model_channels": 16}
    settings |= {"channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
    checkpoint = edm.write(tmp_path / "tiny.pkl", SongUNet(**settings), settings)
    line = error_line("sample", checkpoint, "--labels", "1", "--out", tmp_path / "x.png", *COMPUTE)
    assert "--labels 1: tiny is unconditional" in line


@pytest.mark.parametrize("lora", [0, 2])
def test_a_text_model_names_the_prompt_flag(lora, tiny_pipeline, tmp_path, error_line):
    """A full student and one of LoRA weights: both may be given one prompt, or a file of many."""
    save_student(str(tiny_pipeline("stable_diffusion")), tmp_path / "text", rank=lora)
    line = error_line("sample", tmp_path / "text", "--out", tmp_path / "x.png", *COMPUTE)
    assert "--prompt TEXT" in line
    assert "--prompts FILE" in line
    line = error_line("sample", tmp_path / "text", "--labels", "1", "--out", tmp_path / "x.png", *COMPUTE)
    assert "--labels 1" in line
    assert "--prompt TEXT" in line


@pytest.mark.parametrize("command", [["sample"], ["info"], ["export"], ["pairs", "--teacher"]], ids=lambda c: c[0])
@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("mine.py", "mine:function"),
        ("mine.py:teacher", "mine:teacher"),
        ("part/mine.py", "part.mine:function"),
        ("../mine.py", "mine:function"),
    ],
)
def test_a_python_file_is_no_model_and_its_function_is_named(
    command, name, function, tmp_path, monkeypatch, error_line
):
    (tmp_path / "here" / "part").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    for file in ("mine.py", "part/mine.py", "../mine.py"):
        Path(file).write_text("def teacher(): ...\n")
    line = error_line(*command, name, *(["out"] if command == ["export"] else []))
    assert f"{name}: give {function}" in line


def test_a_teacher_of_a_python_function_is_sampled(tiny_teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = (
        "from dmdistill.models.load import load_teacher\nfrom dmdistill.models.model import Teacher\n\n"
        f"def teacher() -> Teacher:\n    return load_teacher({str(tiny_teacher)!r})\n"
    )
    (tmp_path / "sampled_teacher.py").write_text(code)
    main(["sample", "sampled_teacher:teacher", "--count", "1", *COMPUTE])
    assert load_teacher(str(tiny_teacher)).shape == (1, 8, 8)
    assert (tmp_path / "samples.png").exists()
