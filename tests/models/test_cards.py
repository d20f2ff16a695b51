"""Model cards name the method and its paper."""

import re
from pathlib import Path

import pytest

from dmdistill.commands.distill.method_options import METHODS
from dmdistill.models import cards
from dmdistill.models.cards import describe_distillation


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
