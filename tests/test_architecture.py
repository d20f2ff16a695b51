"""The structure of the package: who imports whom, and what `--help` costs."""

import ast
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import dmdistill

ROOT = Path(dmdistill.__file__).parent
TEMPLATES = sorted(ROOT.glob("commands/export/templates/[!_]*.py"))  # files that exports are made of, no modules
FILES = [file for file in sorted(ROOT.rglob("*.py")) if file not in TEMPLATES]
TIERS = [["core", "networks", "distributed"], ["io"], ["data", "training"], ["metrics"], ["models"], ["commands"]]
COMMAND_TIERS = [
    ["options", "presets", "help_text", "unknown_words", "flag_values"],
    ["run_folder", "prompts", "solver_options"],
    ["pairs", "teach", "evaluate", "sample", "export", "convert", "classifier"],
    ["distill", "bench"],
    ["plan", "reproduce", "info", "list_presets", "completion", "demo"],
    ["ui"],
    ["cli"],
]
HEAVY = {
    *("diffusers", "transformers", "torchvision", "gradio", "matplotlib", "peft"),
    *("huggingface_hub", "datasets", "pandas", "pyarrow"),
}


def parsed(file):
    return ast.parse(file.read_text(encoding="utf-8"))


def imports(tree):
    """Absolute names of what a tree imports: modules, and names in them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_name(file):
    return ".".join(["dmdistill", *file.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")


MODULES = {module_name(file): file for file in FILES}


def imported_modules(file):
    """The modules of ours that a file imports."""
    for name in imports(parsed(file)):
        if name.startswith("dmdistill."):
            module = name if name in MODULES else name.rpartition(".")[0]
            yield from [module] if module != "dmdistill" else []


def tier(name, tiers):
    """The number of the tier that a package or module is in."""
    return next(number for number, names in enumerate(tiers) if name in names)


def at_module_level(tree):
    """The tree without the bodies of its functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.body = [ast.Pass()]
    return tree


@pytest.mark.parametrize("file", [file for file in FILES if file.parent != ROOT], ids=module_name)
def test_imports_run_down_the_tiers(file):
    """A package imports those of lower tiers, and of its own tier only itself."""
    own = module_name(file).split(".")[1]
    for other in (name.split(".")[1] for name in imported_modules(file)):
        assert other == own or tier(other, TIERS) < tier(own, TIERS), other


@pytest.mark.parametrize("file", sorted(ROOT.glob("commands/**/[!_]*.py")), ids=module_name)
def test_commands_import_earlier_commands_only(file):
    if file in TEMPLATES:
        return
    own = module_name(file).split(".")[2]
    for name in imported_modules(file):
        if name.startswith("dmdistill.commands."):
            other = name.split(".")[2]
            assert other == own or tier(other, COMMAND_TIERS) <= tier(own, COMMAND_TIERS), other


def test_no_two_files_import_each_other():
    """Not even through others: a module can be read after those that it imports."""
    open_modules = {name: set(imported_modules(file)) & MODULES.keys() for name, file in MODULES.items()}
    while ready := {name for name, needs in open_modules.items() if not needs & open_modules.keys()}:
        open_modules = {name: needs for name, needs in open_modules.items() if name not in ready}
    assert open_modules == {}


@pytest.mark.parametrize("file", sorted(ROOT.glob("core/*.py")), ids=module_name)
def test_core_knows_torch_and_the_standard_library(file):
    names = {name.split(".")[0] for name in imports(parsed(file))}
    assert names <= {"torch", "dmdistill"} | sys.stdlib_module_names
    assert all(name.startswith("dmdistill.core.") for name in imported_modules(file))


@pytest.mark.parametrize("file", sorted(ROOT.glob("training/*.py")), ids=module_name)
def test_training_knows_no_image_no_model_and_no_objective(file):
    packages = {name.split(".")[1] for name in imported_modules(file)}
    assert packages <= {"training", "io", "distributed", "networks"}


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.stem)
def test_what_is_exported_needs_nothing_of_ours(file):
    assert not any(name.startswith("dmdistill") for name in imports(parsed(file)))


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_no_heavy_import_at_module_level(file):
    assert {name.split(".")[0] for name in imports(at_module_level(parsed(file)))} & HEAVY == set()


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_nothing_hides_nan_or_unpickles_freely(file):
    text = file.read_text(encoding="utf-8")
    assert "nan_to_num" not in text.replace("no nan_to_num", "")
    assert "weights_only=False" not in text


def test_files_and_functions_are_short():
    lengths = [len(file.read_text(encoding="utf-8").splitlines()) for file in FILES if file.stem != "__init__"]
    assert max(lengths) <= 300
    assert statistics.median(lengths) <= 110
    functions = [node for file in FILES for node in ast.walk(parsed(file)) if isinstance(node, ast.FunctionDef)]
    assert max(node.end_lineno - node.lineno + 1 for node in functions) <= 50


def test_no_name_ends_in_of():
    names = {
        node.name
        for file in FILES
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    assert sorted(name for name in names if name.endswith("_of")) == []


@pytest.mark.parametrize("arguments", [["--help"], ["distill", "--help"], ["distill", "--help-all"]])
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
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.7


def test_public_names_are_what_they_say():
    for name in dmdistill.__all__:
        public = getattr(dmdistill, name)
        assert name.isupper() or public.__name__ == name  # a constant has no name of its own
    with pytest.raises(AttributeError, match="no attribute 'destill'"):
        _ = dmdistill.destill
