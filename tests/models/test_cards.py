"""Model cards name the method and its paper, the task and what a model makes; settings are short."""

import copy
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from dmdistill.commands.distill.method_options import METHODS
from dmdistill.core.schedules import EDM, VP, Flow
from dmdistill.data.conditions import LabelSpace
from dmdistill.models import cards
from dmdistill.models.cards import describe_distillation, describe_steps, export_card, student_card, teacher_card
from dmdistill.models.load import load_teacher
from helpers.tiny_models import save_student


def test_every_method_is_cited_as_in_the_docs():
    """Authors and year, or conference, are those of the table in docs/methods.md."""
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    first_table = page.split("\n## ")[0]
    papers = dict(re.findall(r"^\| `(\w[\w-]*)` \| ([^|]*?) \|", first_table, flags=re.M))
    assert cards.METHODS.keys() == METHODS.keys() == papers.keys()
    for method, paper in papers.items():
        assert paper in cards.METHODS[method]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"teacher": "fashion", "method": "dmd2", "out": "runs/dmd2"},
            "from the teacher 'fashion' by DMD2 (Yin et al., NeurIPS 2024), in the run 'runs/dmd2'",
        ),
        (
            {"teacher": "/home/me/tiny", "method": "dmd", "match": True, "out": Path("/home/me/runs/a")},
            "from the teacher 'tiny' by distribution matching distillation (DMD; Yin et al., CVPR "
            "2024), in the run 'a'",
        ),
        ({"teacher": "x", "method": "dmd", "match": False}, "from the teacher 'x' by regression on the teacher's"),
        ({"teacher": "x", "method": "mine:objective"}, "by the method 'mine:objective' of its author's own"),
        ({}, "from the teacher 'unknown' by distribution matching distillation"),
    ],
)
def test_a_card_names_the_teacher_the_method_and_the_run(settings, text):
    assert text in describe_distillation(settings)


SETTINGS = {
    "teacher": "/home/me/x",
    "steps": 7,
    "lr": 5e-5,
    "betas": (0.9, 0.999),
    "match": False,
    "start": None,
    "student_timesteps": (),
    "device": "cpu",
    "out": Path("/home/me/run"),
    "lora_student": 0,
}


def head_and_body(card):
    _, head, body = card.split("---\n", 2)
    return yaml.safe_load(head), body


def test_settings_are_toml_without_those_that_say_nothing(tiny_teacher):
    _, body = head_and_body(teacher_card(load_teacher(str(tiny_teacher)), SETTINGS))
    (block,) = re.findall(
        r"<details><summary>7 settings</summary>\n\n```toml\n(.*?)```\n\n</details>\n", body, flags=re.S
    )
    assert tomllib.loads(block) == {
        "teacher": "x",
        "steps": 7,
        "lr": 5e-5,
        "betas": [0.9, 0.999],
        "match": False,
        "out": "run",
        "lora_student": 0,
    }


def test_the_task_is_that_of_the_model(tiny_teacher, tiny_pipeline, tmp_path):
    """The hub has one for text and one for no condition at all, none for classes."""
    classes = load_teacher(str(tiny_teacher))
    models = {"classes": classes, "none": replace(classes, conditions=None)}
    models["text"] = load_teacher(str(tiny_pipeline("stable_diffusion")))
    heads = {name: head_and_body(teacher_card(model, {}))[0] for name, model in models.items()}
    assert {name: head.get("pipeline_tag") for name, head in heads.items()} == {
        "classes": None,
        "none": "unconditional-image-generation",
        "text": "text-to-image",
    }
    assert heads["classes"]["tags"] == ["class-conditional-image-generation"]
    head, _ = head_and_body(export_card(save_student(str(tiny_teacher), tmp_path / "student"), "", {}))
    assert ("pipeline_tag" in head, head["tags"]) == (False, ["class-conditional-image-generation"])


def test_what_a_model_makes_is_in_words(tiny_teacher, tiny_pipeline, tmp_path):
    _, own = head_and_body(student_card(save_student(str(tiny_teacher), tmp_path / "own"), SETTINGS))
    assert "Images: 8 x 8, 1 channel. Conditioned on 10 classes: ant, bee" in own
    assert "is needed as well" not in own
    guided = replace(load_teacher(str(tiny_teacher)), guidance=1.6)
    assert "in 18 steps at guidance scale 1.6 (70 network evaluations per image)" in teacher_card(guided, {})
    _, text = head_and_body(
        student_card(save_student(str(tiny_pipeline("stable_diffusion")), tmp_path / "sd"), SETTINGS)
    )
    assert re.search(r"Latents: \d+ x \d+, 4 channels\. Conditioned on prompts\.\n", text)
    assert "This folder holds the network only: that teacher is needed as well." in text


@pytest.mark.parametrize(
    ("schedule", "times", "text"),
    [
        (EDM(), (), "A one-step image generator (1 network evaluation per image)"),
        (EDM(), (80.0,), "A one-step image generator (1 network evaluation per image)"),
        (VP.linear_betas(), (999.0,), "A one-step image generator (1 network evaluation per image)"),
        (EDM(), (2.5,), "per image; its network is evaluated at the noise level sigma = 2.5)"),
        (VP.linear_betas(), (399.0,), "per image; its network is evaluated at the timestep 399)"),
        (Flow(), (0.6,), "per image; its network is evaluated at the share of noise 0.6)"),
        (EDM(), (80.0, 9.0), "at the noise levels sigma = 80, 9, with fresh noise between them)"),
        (VP.linear_betas(), (999.0, 499.0), "at the timesteps 999, 499, with fresh noise between them)"),
        (Flow(), (1.0, 0.5), "at the shares of noise 1, 0.5, with fresh noise between them)"),
    ],
)
def test_a_students_times_are_in_the_words_of_its_schedule(schedule, times, text, tiny_teacher, tmp_path):
    """The last time of the schedule, where students of one step are evaluated by default, says nothing."""
    student = save_student(str(tiny_teacher), tmp_path / "student")
    denoiser = copy.copy(student.denoiser)
    denoiser.schedule = schedule
    student = replace(student, timesteps=times, denoiser=denoiser)
    assert describe_steps(student).endswith(text)
    assert "condition" not in describe_steps(student)
    assert f"{describe_steps(student)}: distilled" in export_card(student, "", {})


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (("bag", "coat"), "\nClasses: 0 bag, 1 coat.\n"),
        (("class 0", "class 1"), "\nClasses: the numbers from 0 to 1, which have no names.\n"),
        (tuple(f"kind{i}" for i in range(100)), ", 18 kind18, ..., 99 kind99.\n"),
    ],
)
def test_an_exported_card_names_the_classes_of_its_labels(names, line, tiny_teacher, tmp_path):
    student = replace(save_student(str(tiny_teacher), tmp_path / "student"), conditions=LabelSpace(names))
    assert line in export_card(student, "", {})
    assert "Classes:" not in export_card(replace(student, conditions=None), "", {})
