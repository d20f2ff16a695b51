"""The text-to-image models of the repository follow their prompts, and are known by name."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

from dmdistill.data.fashion_captions import ATTRIBUTES, CLASS_WORDS
from dmdistill.data.image_tensors import to_uint8
from dmdistill.metrics.alignment import Alignment
from dmdistill.metrics.classifier_features import load_classifier_features
from dmdistill.models.load import absolute_name, load_model
from dmdistill.models.model import Student, Teacher

MODELS = Path(__file__).parents[2] / "models"
PROMPTS = [f"a {word} {name}" for name in CLASS_WORDS for word in ATTRIBUTES["brightness"].words]


def test_the_text_student_follows_its_prompts():
    student = load_model(str(MODELS / "fashion-text-student"))
    assert isinstance(student, Student)
    assert student.evaluations == 1
    images = to_uint8(student(PROMPTS, count=90, seed=0))
    scores = Alignment(load_classifier_features("fashion-classifier", torch.device("cpu")))(images, PROMPTS * 3)
    assert scores.mean() > 0.75


def test_the_text_teacher_is_guided():
    teacher = load_model(str(MODELS / "fashion-text"))
    assert isinstance(teacher, Teacher)
    assert (teacher.guidance, teacher.evaluations, teacher.shape) == (3.0, 102, (4, 8, 8))


def test_models_of_the_folder_models_are_known_by_name(monkeypatch, tmp_path):
    monkeypatch.chdir(MODELS.parent)
    assert load_model("fashion-text").name == "fashion-text"
    assert absolute_name("fashion-text") == str(MODELS / "fashion-text")
    assert absolute_name("fashion") == "fashion"
    with pytest.raises(ValueError, match="unknown model 'fashion-tex'; did you mean 'fashion-text'"):
        load_model("fashion-tex")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="unknown model 'fashion-text'; did you mean 'fashion-"):
        load_model("fashion-text")
    with pytest.raises(ValueError, match=r"repository's folder models/ needs a checkout, or .DMDISTILL_MODELS"):
        load_model("fashion-text")
    monkeypatch.setenv("DMDISTILL_MODELS", str(MODELS))
    assert load_model("fashion-text").guidance == 3.0
    assert load_model("cifar10-tiny").shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pipelin", "unknown model 'pipelin'; did you mean 'pipeline'"),
        ("runs/deom", r"there is no folder runs/deom, and runs/deom cannot be .*; did you mean 'runs/demo'\?$"),
        ("runs/demo/x/y", "there is no file or folder runs/demo/x/y$"),
        ("mine.pkl", "there is no file or folder mine.pkl$"),
        ("pipeline/unet", "pipeline/unet is a component of the pipeline pipeline: give that folder instead"),
        (
            "nowhere:teacher",
            r"there is no module 'nowhere' in the current folder, .*, nor among the installed packages",
        ),
        ("needs_more:teacher", r"ModuleNotFoundError: No module named 'nowhere' \(.*needs_more.py, line 1\)"),
    ],
)
def test_a_name_that_is_nearly_right_gets_a_hint(name, message, monkeypatch, tmp_path):
    (tmp_path / "pipeline").symlink_to(MODELS / "fashion-text")
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "needs_more.py").write_text("import nowhere")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^.{{0,40}}{message}"):
        load_model(name)
