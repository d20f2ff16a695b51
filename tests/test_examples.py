"""The examples are true: one model under four parameterisations, a network of one's own, curves, and the notebook."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from dmdistill.commands.convert.command import convert
from dmdistill.commands.convert.config import ConvertConfig
from dmdistill.commands.distill.command import distill
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.options import ComputeOptions, SolverOptions, change
from dmdistill.commands.presets import from_preset
from dmdistill.core.generators import Generator
from dmdistill.data.image_tensors import save_grid
from dmdistill.models.load import load_model, load_teacher
from helpers.configs import configure

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from examples import compare_runs, own_model, parameterisations

OTHERS = ("eps", "v", "velocity")
SMALL = {  # sizes in the notebook -> in its test
    "steps=100": "steps=2",
    "batch=16": "batch=4",
    "every=50": "every=2",
    "evaluate_images=500": "evaluate_images=8",
}


@pytest.fixture(scope="module")
def teachers():
    return {name: load_teacher(f"examples.parameterisations:{name}") for name in ("edm", *OTHERS)}


@pytest.mark.parametrize("name", OTHERS)
def test_mu_is_the_same_at_the_same_noise(name, teachers, rng):
    """x_t/alpha of one path is x_t of the other at sigma/alpha."""
    teacher, edm = teachers[name], teachers["edm"]
    x, index = edm.sample_noise(3, rng=rng)
    t = torch.tensor([0.1, 0.5, 0.9]) if name == "velocity" else torch.tensor([60.0, 500.0, 900.0])
    alpha, sigma = teacher.denoiser.schedule.alpha(t), teacher.denoiser.schedule.sigma(t)
    expected = edm.denoiser(x / alpha[:, None, None, None], sigma / alpha, edm.condition(index))
    torch.testing.assert_close(teacher.denoiser(x, t, edm.condition(index)), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", OTHERS)
def test_the_generators_start_alike(name, teachers, rng):
    z, index = teachers["edm"].sample_noise(4, rng=rng)
    cond = teachers["edm"].condition(index)
    expected = Generator(teachers["edm"].denoiser)(z, cond)
    torch.testing.assert_close(Generator(teachers[name].denoiser)(z, cond), expected, rtol=1e-2, atol=2e-2)


def test_a_denoiser_within_a_network_computes_in_bf16(rng):
    """The weights of the inner one are cast too, and its autocast is that of the outer one."""
    teacher = load_teacher("examples.parameterisations:velocity").to(torch.device("cpu"), torch.bfloat16)
    z, cond = teacher.sample_inputs(2, rng=rng)
    expected = Generator(teacher.denoiser)(z, cond)
    torch.testing.assert_close(Generator(teacher.cast_weights().denoiser)(z, cond), expected, rtol=0.0, atol=0.0)


def test_own_teachers_are_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "def three() -> 'Teacher':\n    return 3\n\n\ndef bare():\n    raise SystemExit\n"
    source += "\n\ndef wants(x) -> 'Teacher':\n    return x\n\n\ndef fails() -> 'Teacher':\n    return 1 / 0\n"
    (tmp_path / "mine_for_a_test.py").write_text(source)
    (tmp_path / "broken_for_a_test.py").write_text("def teacher(:")
    for name, match in (
        ("mine_for_a_test:three", "int, expected a Teacher"),
        ("mine_for_a_test:bare", "expected a function that is annotated"),
        ("os:abort", "expected a function that is annotated"),
        ("mine_for_a_test:four", "mine_for_a_test has no 'four'"),
        ("no_such_module:teacher", "there is no module 'no_such_module'"),
        ("mine_for_a_test:wants", "TypeError: .* missing 1 required positional argument"),
        ("mine_for_a_test:fails", r"ZeroDivisionError: division by zero \(.*mine_for_a_test.py, line 14\)"),
        ("broken_for_a_test:teacher", "SyntaxError: .*broken_for_a_test.py, line 1"),
    ):
        with pytest.raises(ValueError, match=match):
            load_teacher(name)
    assert parameterisations.edm().name == "fashion"


def test_a_student_belongs_to_its_teacher(tmp_path):
    """It cannot start another's run, is loaded again by its function, and has nothing to convert."""
    quick = {"steps": 1, "batch": 2, "lambda_reg": 0.0, "evaluate_images": 4, "report_images": 4, "seed": 3}
    compute = ComputeOptions(device="cpu", precision="fp32", threads=1)
    base = configure(
        DistillConfig, teacher="examples.parameterisations:eps", out=tmp_path / "a", compute=compute, **quick
    )
    base = change(base, ode=SolverOptions(solver_steps=1))
    first = distill(base)
    again = load_model(str(tmp_path / "a"))
    z, index = first.sample_noise(2, rng=torch.Generator().manual_seed(0))
    expected = first.images(z, first.condition(index))
    torch.testing.assert_close(again.images(z, again.condition(index)), expected, rtol=1e-3, atol=1e-3)
    other = {"teacher": "examples.parameterisations:velocity", "out": tmp_path / "b", "start": str(tmp_path / "a")}
    with pytest.raises(ValueError, match=r"is not a student of the teacher examples\.parameterisations:velocity"):
        distill(change(base, **other))
    with pytest.raises(ValueError, match="has a network of another package"):
        convert(ConvertConfig("examples.parameterisations:eps", tmp_path / "c"))
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_runs_are_compared_side_by_side(tmp_path):
    """Two runs, one without a discriminator; panels of what either has, and the sample grids."""
    rows = [{"loss_kl": 1.0, "gap_0": 0.1, "sample_mean": 0.2, "teacher_mean": 0.1}, {"loss_kl": 0.5}]
    for name, extra in (("one", {"accuracy_real": 0.6, "accuracy_generated": 0.7}), ("other", {})):
        run = tmp_path / name
        (run / "samples").mkdir(parents=True)
        lines = [json.dumps({"step": step, **row, **extra}) + "\n" for step, row in enumerate(rows, 1)]
        (run / "metrics.jsonl").write_text("".join(lines))
        save_grid(run / "samples" / "step-000002.png", torch.zeros(16, 1, 4, 4), columns=8)
    compare_runs.compare([tmp_path / "one", tmp_path / "other"], tmp_path / "compared.png")
    with Image.open(tmp_path / "compared.png") as picture:
        assert picture.width > 600


def test_a_network_of_ones_own_is_trained_and_distilled(tmp_path, monkeypatch):
    """Two steps of each: its weights are read anew by the teacher, and the student's images are finite."""
    monkeypatch.setattr(own_model, "WEIGHTS", tmp_path / "own-model.pt")
    images, labels = own_model.draw_images(2)
    assert images.shape == (20, 1, 28, 28)
    assert labels.unique(return_counts=True)[1].tolist() == [2] * 10
    network = own_model.train(images, labels, steps=2, batch=4)
    torch.save(network.state_dict(), own_model.WEIGHTS)
    teacher = load_teacher("examples.own_model:teacher")
    assert all(map(torch.equal, teacher.network.state_dict().values(), network.state_dict().values()))
    quick = {"steps": 2, "batch": 2, "batch_reg": 2, "pair_count": 2, "match_from": 0.0, "warmup": 1}
    distill(
        from_preset(
            DistillConfig,
            "small-network",
            teacher="examples.own_model:teacher",
            out=tmp_path / "run",
            report_images=0,
            sample_every=9,
            **quick,
        )
    )
    assert load_model(str(tmp_path / "run"))(labels=[3], count=2).isfinite().all()


def test_the_notebook_runs(tmp_path, monkeypatch):
    """Its cells of code, in their order, with few images; it stores no outputs."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "examples" / "first-student.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    names: dict = {}
    for cell in cells:
        text = "".join(cell["source"])
        for size, small in SMALL.items():
            text = text.replace(size, small)
        exec(compile(text, "first-student.ipynb", "exec"), names)
    assert (tmp_path / "boots.png").is_file()
    assert names["student"].evaluations == 1
    assert all(size in str(cells) for size in SMALL)


def test_the_notebooks_links_lead_somewhere():
    text = (ROOT / "examples" / "first-student.ipynb").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (ROOT / "examples" / target).exists(), target
