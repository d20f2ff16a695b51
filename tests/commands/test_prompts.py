"""Prompts through the commands, with a text teacher small enough for seconds."""

import importlib
from dataclasses import replace

import pytest
import torch
from torch import nn

from dmdistill.commands.cli import main
from dmdistill.commands.evaluate import command as evaluating
from dmdistill.commands.prompts import with_prompt_texts, with_prompts
from dmdistill.core.denoisers import EDMDenoiser
from dmdistill.core.schedules import EDM
from dmdistill.data.pairs import open_pairs
from dmdistill.models import folder as folders
from dmdistill.models.folder import save_model
from dmdistill.models.load import load_model, load_teacher
from dmdistill.models.model import Teacher

MACHINE = ["--device", "cpu", "--precision", "fp32", "--threads", "1"]
SMALL = ["--steps", "2", "--batch", "3", "--batch-reg", "2", "--report-images", "4", "--pair-count", "6"]
SHAPE = (3, 6, 6)
TEXTS = ["a red square", "a blue square", "a circle", "a red square"]


class Told(nn.Module):
    """A network that is told a prompt by one tensor."""

    def __init__(self, img_resolution: "int" = 6, in_channels: "int" = 3, out_channels: "int" = 3) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)
        self.words = nn.Linear(5, 3)

    def forward(self, x, noise, cond):
        return self.layer(x) + self.words(cond.tensors["prompt_embeds"].mean(1))[:, :, None, None]


class Letters:
    """Encodes a prompt by its letters, and says what it was asked and whether it was released."""

    id = "letters"

    def __init__(self, asked):
        self.asked, self.loaded = asked, False

    def encode(self, prompts):
        self.loaded = True
        self.asked.extend(prompts)
        return {"prompt_embeds": torch.stack([self.row(text) for text in prompts])}

    def row(self, text):
        return torch.rand(2, 5, generator=torch.Generator().manual_seed(sum(map(ord, text))))

    def empty(self):
        self.loaded = True
        return {"prompt_embeds": torch.zeros(1, 2, 5)}

    def to(self, device):
        return self

    def release(self):
        self.loaded = False


@pytest.fixture
def asked():
    """Every prompt that was encoded."""
    return []


@pytest.fixture
def teacher(asked, tmp_path, monkeypatch):
    """The folder of a text teacher; whatever the commands load is told text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(folders.CLASSES, "network", (*folders.CLASSES["network"], Told))
    encoder = Letters(asked)
    for name in (
        "pairs.command",
        "distill.command",
        "distill.setup",
        "sample.command",
        "evaluate.inputs",
        "info.command",
    ):
        module = importlib.import_module(f"dmdistill.commands.{name}")
        for load in (load_model, load_teacher):
            if hasattr(module, load.__name__):
                monkeypatch.setattr(
                    module,
                    load.__name__,
                    lambda name, load=load, **given: replace(load(str(name), **given), text=encoder),
                )
    monkeypatch.setattr("dmdistill.commands.distill.report.draw_curves", lambda _: None)
    monkeypatch.setattr("dmdistill.commands.distill.report.draw_comparison", lambda *_, **__: None)
    monkeypatch.setattr(evaluating, "seconds_per_image", lambda _, **__: 1.0)
    torch.manual_seed(0)
    path, network = EDM(), Told()
    config = {
        "kind": "teacher",
        "name": "told",
        "shape": SHAPE,
        "solver": "heun",
        "steps": 3,
        "guidance": 1.0,
        "network": {"class": "Told", "img_resolution": 6, "in_channels": 3, "out_channels": 3},
        "schedule": {"class": "EDM"},
        "denoiser": {"class": "EDMDenoiser"},
    }
    made = Teacher(name="told", denoiser=EDMDenoiser(network, path), shape=SHAPE, config=config)
    save_model(tmp_path / "told", made, card="A teacher of nothing.")
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS))
    return tmp_path / "told"


@pytest.fixture
def refused(capsys, tmp_path):
    """Run a command that must fail: its one line. Nothing is written."""

    def run(*arguments, match):
        before = set(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        error = capsys.readouterr().err
        assert (end.value.code, error.count("\n")) == (2, 1), error
        assert match in error
        assert set(tmp_path.rglob("*")) == before

    return run


def test_the_whole_road_of_a_text_teacher(teacher, asked, tmp_path, capsys):
    """Pairs, distillation from them with guidance, the student's samples and figures; each prompt encoded once."""
    given = ["--teacher", str(teacher), "--prompts", "prompts.txt", "--solver-steps", "2", "--guidance", "2", *MACHINE]
    main(["pairs", *given, "--pair-count", "6", "--out", "pairs"])
    pairs = open_pairs(tmp_path / "pairs")
    assert pairs.settings.conditions.startswith("4 prompts ")
    z, y, index = pairs[range(6)]
    told = with_prompt_texts(replace(load_teacher(str(teacher)), text=Letters([]), steps=2, guidance=2.0), TEXTS)
    torch.testing.assert_close(y, told.generate(z, told.condition(index)), rtol=2e-3, atol=2e-3)

    main(["distill", *given, *SMALL, "--pairs", "pairs", "--out", "run"])
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert "text-to-image" in card
    assert "--prompt" in card
    main(["evaluate", "run", "--prompts", "prompts.txt", "--images", "4", *MACHINE])
    assert sorted(asked) == sorted(set(TEXTS))
    main(["sample", "run", "--prompt", "a green square", "--count", "2", *MACHINE])
    assert asked[-1] == "a green square"
    capsys.readouterr()
    main(["info", str(teacher)])
    assert "prompts" in capsys.readouterr().out


def test_samples_are_of_the_prompts_given_in_turn(teacher, rng):
    from dmdistill.commands.options import ComputeOptions
    from dmdistill.commands.sample.command import sample
    from dmdistill.commands.sample.config import SampleConfig

    compute = ComputeOptions(device="cpu", precision="fp32", threads=1)
    drawn = sample(SampleConfig(str(teacher), count=5, prompt=("a circle", " sky "), compute=compute))
    model = with_prompt_texts(replace(load_teacher(str(teacher)), text=Letters([])), ["a circle", "sky"])
    z = torch.randn(5, *SHAPE, generator=rng)
    expected = model.images(z, model.condition(torch.tensor([0, 1, 0, 1, 0])))
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=5e-4)  # convolutions in another memory layout
    assert not torch.allclose(drawn, model.images(z, model.condition(torch.tensor([1, 0, 1, 0, 1]))), atol=1e-3)


def test_the_encoder_is_released_even_after_a_failure(teacher, tmp_path):
    model = replace(load_teacher(str(teacher)), text=Letters([]))
    assert len(with_prompts(model, "prompts.txt").conditions) == 4
    assert not model.text.loaded

    class Failing(Letters):
        id = "failing"

        def encode(self, prompts):
            super().encode(prompts)
            raise KeyboardInterrupt

    model = replace(model, text=Failing([]))
    with pytest.raises(KeyboardInterrupt):
        with_prompts(model, "prompts.txt", tmp_path / "elsewhere")
    assert not model.text.loaded


@pytest.mark.parametrize(
    "command", [["pairs", "--teacher"], ["distill", "--teacher"], ["sample"], ["evaluate"]], ids=lambda words: words[0]
)
def test_a_text_model_wants_prompts_and_gets_good_ones(command, teacher, refused):
    refused(*command, teacher, *MACHINE, match="--prompts FILE")
    refused(*command, teacher, "--prompts", "none.txt", *MACHINE, match="none.txt does not exist")
    refused(*command, teacher, "--prompts", "p.docx", *MACHINE, match="expected a file ending in .txt")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--labels", "1"], "--labels 1: told is a text-to-image model, give --prompt TEXT"),
        (["--prompt", "a", "--prompts", "prompts.txt"], "--prompt and --prompts prompts.txt"),
        (["--prompt", "a", " "], "--prompt with an empty text"),
        (["--prompt", "a", "--prompt", ""], "--prompt with an empty text"),
        ([], "give --prompt TEXT"),
    ],
)
def test_samples_that_cannot_be_are_refused(arguments, match, teacher, refused):
    refused("sample", teacher, *MACHINE, *arguments, match=match)


def test_the_message_to_a_student_without_prompts_names_those_of_its_run(teacher):
    model = replace(load_model(str(teacher)), text=Letters([]))
    with pytest.raises(ValueError, match=r"give --prompts FILE, .* \.parquet$"):
        with_prompts(model, None)
    student = replace(model, config=model.config | {"distilled": {"prompts": "mine.txt"}})
    with pytest.raises(ValueError, match=r"; it was distilled with --prompts mine\.txt$"):
        with_prompts(student, None)


def test_a_model_of_classes_takes_no_prompts(tiny_teacher, tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("red")
    for command in (["pairs", "--teacher"], ["distill", "--teacher"], ["sample"], ["evaluate"]):
        given = [*command, tiny_teacher, "--prompts", "prompts.txt", *MACHINE]
        refused(*given, match="--prompts prompts.txt for tiny")
    refused("sample", tiny_teacher, "--prompt", "red", *MACHINE, match="--prompt 'red' for tiny")


def test_pairs_of_other_prompts_are_refused(teacher, tmp_path, refused):
    given = ["--teacher", str(teacher), "--solver-steps", "2", *MACHINE]
    main(["pairs", *given, "--prompts", "prompts.txt", "--pair-count", "6", "--out", "pairs"])
    (tmp_path / "others.txt").write_text("\n".join(TEXTS[:3]))
    main(["sample", str(teacher), "--prompts", "others.txt", *MACHINE])  # so that nothing is left to encode
    refused("distill", *given, *SMALL, "--prompts", "others.txt", "--pairs", "pairs", match="pairs holds images")


@pytest.mark.parametrize("family", ["stable_diffusion", "sdxl", "sd3", "flux"])
def test_a_pipeline_is_told_prompts(family, tiny_pipeline, tmp_path, monkeypatch):
    """Pairs of a real class of pipeline, with guidance; another command finds its prompts encoded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "prompts.csv").write_text("caption\n" + "\n".join(TEXTS))
    folder = str(tiny_pipeline(family))
    given = ["--prompts", "prompts.csv", *MACHINE]
    main(["pairs", "--teacher", folder, *given, "--pair-count", "4", "--solver-steps", "2", "--guidance", "2"])
    z, y, index = open_pairs(tmp_path / "pairs" / "fashion")[range(4)]
    assert torch.isfinite(y).all()
    teacher = with_prompts(replace(load_teacher(folder), steps=2, guidance=2.0), "prompts.csv")
    assert teacher.text.pipeline is None  # released, or never loaded
    torch.testing.assert_close(y, teacher.generate(z, teacher.condition(index)), rtol=4e-3, atol=4e-3)
    monkeypatch.setattr("dmdistill.models.diffusers_text.PipelineText.load", None)
    with_prompts(load_teacher(folder), "prompts.csv")
