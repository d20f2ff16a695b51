"""The shape of the house: who imports whom, and what `--help` costs."""

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import dmdistill

ROOT = Path(dmdistill.__file__).parent
TEMPLATES = sorted(ROOT.glob("commands/export/templates/[!_]*.py"))  # files that exports are made of, no modules
FILES = [file for file in sorted(ROOT.rglob("*.py")) if file not in TEMPLATES]
TIER = {"core": 0, "networks": 0, "distributed": 0, "io": 1, "data": 2, "training": 2, "metrics": 3, "models": 4}
TIER["commands"] = 5
HEAVY = {
    *("diffusers", "transformers", "torchvision", "gradio", "matplotlib", "peft"),
    *("huggingface_hub", "datasets", "pandas", "pyarrow"),
}


def imports(tree):
    """Absolute names of the modules that a tree imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            if node.module == "dmdistill":
                yield from (f"dmdistill.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""


def at_module_level(tree):
    """The tree without the bodies of its functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.body = [ast.Pass()]
    return tree


def parsed(file):
    return ast.parse(file.read_text(encoding="utf-8"))


def part(file):
    """Which part of the house a file is."""
    return file.relative_to(ROOT).with_suffix("").parts[0]


@pytest.mark.parametrize("file", [f for f in FILES if f.parent != ROOT or f.stem in TIER], ids=lambda f: f.stem)
def test_imports_run_one_way(file):
    """core <- networks, teachers, data, metrics <- training <- app; `files`, `download`, `processes` are below all."""
    ours = [name.split(".")[1] for name in imports(parsed(file)) if name.startswith("dmdistill.")]
    assert [other for other in ours if TIER[other] > TIER[part(file)]] == []


@pytest.mark.parametrize("file", sorted(ROOT.glob("core/*.py")), ids=lambda f: f.stem)
def test_core_knows_torch_and_the_standard_library(file):
    assert {name.split(".")[0] for name in imports(parsed(file))} <= {"torch", "dmdistill"} | sys.stdlib_module_names
    assert all(name.startswith("dmdistill.core.") for name in imports(parsed(file)) if name.startswith("dmdistill"))


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda f: f.stem)
def test_what_is_exported_needs_nothing_of_ours(file):
    assert not any(name.startswith("dmdistill") for name in imports(parsed(file)))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_no_heavy_import_at_module_level(file):
    assert {name.split(".")[0] for name in imports(at_module_level(parsed(file)))} & HEAVY == set()


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_nothing_hides_nan_or_unpickles_freely(file):
    text = file.read_text(encoding="utf-8")
    assert "nan_to_num" not in text.replace("no nan_to_num", "")
    assert "weights_only=False" not in text


@pytest.mark.parametrize("arguments", [["--help"], ["distill", "--help"]])
def test_help_loads_no_torch_and_is_quick(arguments):
    """CPU time, which a busy machine hardly changes."""
    code = (
        "import sys\nfrom dmdistill.commands.cli import main\n"
        f"try:\n    main({arguments})\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'PIL', 'safetensors'} & set(sys.modules)\nassert not heavy, heavy"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: dmdistill" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_public_names_are_what_they_say():
    for name in dmdistill.__all__:
        assert getattr(dmdistill, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'destill'"):
        _ = dmdistill.destill
