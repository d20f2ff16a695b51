"""Guidance of a network that embeds a scale, such as Flux-dev's, and classifier-free guidance on top."""

from itertools import pairwise

import pytest
import torch

from dmdistill.commands.cli import main
from dmdistill.commands.options import SolverOptions
from dmdistill.commands.solver_options import embedded_guidance, with_solver_options
from dmdistill.models.fingerprint import fingerprint
from dmdistill.models.load import load_model, load_teacher

COMPUTE = ["--device", "cpu", "--precision", "fp32", "--threads", "1"]
SMALL = ["--pair-count", "3", "--steps", "2", "--batch", "2", "--batch-reg", "2", "--report-images", "2", *COMPUTE]


@pytest.fixture
def flux(tiny_pipeline):
    return str(tiny_pipeline("flux", guidance=True))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("dmdistill.models.diffusers_pipeline.FLUX_SIZE", 8)
    monkeypatch.delenv("DMDISTILL_DEBUG", raising=False)


def test_guidance_is_the_networks_input_and_true_guidance_is_classifier_free(flux):
    plain, embedded, true = (
        with_solver_options(load_teacher(flux), SolverOptions(solver_steps=2, **options))
        for options in ({}, {"guidance": 7.0}, {"guidance": 7.0, "true_guidance": 2.0})
    )
    assert [embedded_guidance(teacher) for teacher in (plain, embedded, true)] == [3.5, 7.0, 7.0]
    assert [teacher.guidance for teacher in (plain, embedded, true)] == [1.0, 1.0, 2.0]
    assert [teacher.evaluations for teacher in (plain, embedded, true)] == [2, 2, 4]
    assert fingerprint(plain) != fingerprint(embedded) == fingerprint(true)
    drawn = [teacher("a red square", seed=1) for teacher in (plain, embedded, true)]
    assert not any(torch.equal(one, other) for one, other in pairwise(drawn))


def test_other_networks_have_no_true_guidance(tiny_pipeline):
    with pytest.raises(ValueError, match=r"--true-guidance 2\.0: .* embeds no guidance, give --guidance"):
        with_solver_options(load_teacher(str(tiny_pipeline("sd3"))), SolverOptions(true_guidance=2.0))


def test_a_student_keeps_the_embedded_guidance(flux, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red square\nblue circle\n")
    given = ["--teacher", flux, "--prompts", "prompts.txt", "--guidance", "2", "--solver-steps", "1"]
    main(["distill", *given, "--out", "run", *SMALL])
    student = load_model("run")
    assert student.network.embedded_guidance == 2.0
    with_pairs = load_model("run", teacher=load_teacher(flux))
    assert with_pairs.network.embedded_guidance == 2.0
    main(["export", "run", "out"])
    assert "guidance_scale=2" in (tmp_path / "out" / "README.md").read_text()
    exported = load_model("out")
    assert exported.network.embedded_guidance == 2.0
    torch.testing.assert_close(exported("a red square", seed=1), student("a red square", seed=1))
