"""Every command and every line of Python in the README and the docs runs, at a size that takes seconds."""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dmdistill.commands.cli import COMMANDS, main, parse
from dmdistill.commands.options import check, flag_name
from dmdistill.commands.presets import option_types, preset_names
from dmdistill.core.divergences import DIVERGENCES
from dmdistill.metrics.lpips_weights import load_lpips
from helpers.lpips_sources import write_lpips_sources
from helpers.tiny_pipelines import tiny_stable_diffusion

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SMALL = {
    "distill": "--steps 2 --report-images 0 --evaluate-images 8 --batch 8",
    "teach": "--steps 2 --batch 4",
    "pairs": "--pair-count 8",
    "bench": "--repeats 1 --max-batch 1 --solver-steps 2",
    "evaluate": "--images 8 --side 12",  # the test's data are of 12 x 12
    "sample": "--count 8",
    "classifier": "--epochs 1",
    "info": "",
    "presets": "",
    "convert": "",
    "export": "",
    "reproduce fig3": "--seeds 1 --steps 2",
    "reproduce fig4": "--seeds 1",
}
SMALL_PAIRS = "--pair-count 8 --batch-reg 4"  # of the method with a regression, and of own ones
SMALL_PYTHON = (
    "steps=500",
    "steps=2, pair_count=8, report_images=0, evaluate_images=8, batch=4, batch_reg=4",
)


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, languages: str) -> list[tuple[str, str, str]]:
    """Return the language, the title and the text of the page's blocks, in their order."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf'^```({languages})(?: title="([^"]*)")?\n(.*?)^```', text, flags=re.S | re.M)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_a_page_runs(page, tmp_path, monkeypatch, idx_folder):
    """Blocks of bash and python run, and titled ones are written to files, in their order and in one folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "fashion-mnist").symlink_to(idx_folder)
    if "vgg16-397923af.pth" in page.read_text(encoding="utf-8"):
        write_lpips_sources(tmp_path)
    if "pipelines/sd15" in page.read_text(encoding="utf-8"):
        tiny_stable_diffusion(tmp_path / "pipelines" / "sd15")
    torch.manual_seed(0)
    names: dict = {}
    for language, file, text in blocks(page, "bash|python|text|toml"):
        if file:
            (tmp_path / file).write_text(text, encoding="utf-8")
        if language == "python":
            exec(compile(text.replace(*SMALL_PYTHON), str(page), "exec"), names)
        elif language == "bash":
            run_commands(text)
    if (tmp_path / "lpips_vgg16.safetensors").exists():
        load_lpips(tmp_path / "lpips_vgg16.safetensors")


def run_commands(text: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    for line in text.replace("\\\n", "").splitlines():
        words = shlex.split(line, comments=True)
        if not words or words[0] in ("pip", "python"):  # the scripts of the benchmarks take minutes: see below
            continue
        if words[0] == "make":
            assert words[1] in targets
        else:
            assert words[0] == "dmdistill", line
            main([*words[1:], *small_options(words[1:])])


def small_options(words: list[str]) -> list[str]:
    """Return the options that make a command small."""
    options = SMALL[words[0] if words[0] in SMALL else " ".join(words[:2])].split()
    if words[0] == "distill" and ((method := parse(words)[1].method) == "dmd" or ":" in method):
        options += SMALL_PAIRS.split()
    return options


def command_lines(page: Path) -> list[tuple[list[str], list[str]]]:
    """Return the commands in blocks of `sh`, which need the reader's weights or data: torchrun's words and ours."""
    text = "".join(text for *_, text in blocks(page, "sh")).replace("\\\n", "")
    lines = re.findall(r"^(torchrun .* -m )?dmdistill (.*)$", text, flags=re.M)
    return [(launch.split(), shlex.split(line, comments=True)) for launch, line in lines]


def world_size(launch: list[str]) -> int:
    """Return the number of processes that torchrun starts."""
    counts = [int(launch[launch.index(flag) + 1]) for flag in ("--nnodes", "--nproc-per-node") if flag in launch]
    return math.prod(counts)


@pytest.mark.parametrize("page", [page for page in PAGES if command_lines(page)], ids=page_name)
def test_commands_that_need_more_parse(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for launch, words in command_lines(page):
        if "--resume" in words:
            run = Path(words[words.index("--resume") + 1])
            run.mkdir(parents=True)
            (run / "config.toml").write_text("steps = 1\n")
        command, config = parse(words)
        check(config)
        if command == "distill":
            assert config.batch % world_size(launch) == config.regression.batch_reg % world_size(launch) == 0


OTHER_FLAGS = {"--help", "--help-all", "--nproc-per-node", "--max-restarts", "--dependency", "--no-deps", "--own-pairs"}


def test_flags_in_sentences_exist():
    """Flags in inline code are flags of a command, or of torchrun, Slurm, pip and the benchmarks."""
    options = {name for command in COMMANDS.values() for name in option_types(command.config)}
    known = OTHER_FLAGS | {flag_name(prefix + name) for name in options for prefix in ("", "no_")}
    for page in (*PAGES, ROOT / "CHANGELOG.md"):
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
        flags = {
            flag for code in re.findall(r"`[^`\n]*`", text) for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", code)
        }
        assert flags <= known, f"{page_name(page)}: {flags - known}"


def test_no_command_stands_outside_a_block():
    """An indented command would be neither run nor parsed."""
    for page in PAGES:
        indented = re.findall(r"^    (?:torchrun .*)?dmdistill .*", page.read_text(encoding="utf-8"), flags=re.M)
        assert indented == [], f"{page_name(page)}: put {indented} into a block of sh or bash"


def test_scripts_exist():
    for page in PAGES:
        for script in re.findall(r"^(?:OMP_NUM_THREADS=1 )?python (\S+\.py)", page.read_text(encoding="utf-8"), re.M):
            assert (ROOT / script).is_file(), f"{page_name(page)} names {script}"


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_preset_has_its_row():
    rows = (ROOT / "docs" / "presets.md").read_text(encoding="utf-8")
    assert [name for name in preset_names() if f"`{name}`" not in rows] == []


def test_h_of_each_divergence_is_that_of_the_maths():
    page = (ROOT / "docs" / "the-maths.md").read_text(encoding="utf-8")
    _, _, table = page.partition("| `--divergence` |")
    rows = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| ([^|]*) \|$", table, flags=re.M))
    assert rows.keys() == DIVERGENCES.keys()
    r = torch.tensor([0.1, 0.5, 2.0, 20.0])
    for name, formula in rows.items():
        expected = r.new_ones(()) * eval(formula.replace("√r", "r ** 0.5"), {"r": r})
        torch.testing.assert_close(DIVERGENCES[name](r), expected.expand(4))


def test_the_files_of_the_tour_exist():
    """Files without a folder are in commands/distill, as the tour says."""
    package = ROOT / "src" / "dmdistill"
    text = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    names = re.findall(r"`([a-z_/]+\.py)`", text.split("## Follow one distillation")[1])
    assert len(names) > 30
    for name in names:
        assert (package / name).is_file() or (package / "commands" / "distill" / name).is_file(), name


def test_every_page_is_in_the_contents():
    names = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")} - {"index.md"}
    top = {name for name in names if "/" not in name}
    experiments = {name.removeprefix("experiments/") for name in names if name.startswith("experiments/")} - {
        "index.md"
    }
    for contents, link, pages in (
        ("mkdocs.yml", ": {}\n", names),
        ("docs/index.md", "]({})", top),
        ("README.md", "](docs/{})", top),
        ("docs/experiments/index.md", "]({})", experiments),
    ):
        text = (ROOT / contents).read_text(encoding="utf-8")
        assert [page for page in pages if link.format(page) not in text] == []


def test_the_site_builds(tmp_path):
    """Links, anchors and the docstrings that the reference is made from are checked strictly."""
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
