"""The text-to-image models of the repository follow their prompts."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

from dmdistill.data.fashion_captions import ATTRIBUTES, CLASS_WORDS
from dmdistill.data.image_tensors import to_uint8
from dmdistill.metrics.alignment import Alignment
from dmdistill.metrics.classifier_features import load_classifier_features
from dmdistill.models.load import load_model
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
