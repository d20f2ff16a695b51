"""Every command and every line of Python in the README and the docs runs, at a size that takes seconds."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from dmdistill.commands.cli import main, parse

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL = {
    "distill": "--steps 2 --pair-count 8 --report-images 8 --evaluate-images 8 --batch 4 --batch-reg 4",
    "teach": "--steps 2 --batch 4",
    "pairs": "--count 8",
    "bench": "--repeats 1 --most 1 --solver-steps 2",
    "evaluate": "--images 8 --side 12",  # the test's data are of 12 x 12
    "sample": "--count 8",
    "classifier": "--epochs 1",
    "info": "",
    "export": "",
    "reproduce fig3": "--seeds 1 --steps 2",
    "reproduce fig4": "--seeds 1",
}
SMALL_PYTHON = (
    "steps=500",
    "steps=2, pair_count=8, report_images=8, evaluate_images=8, batch=4, batch_reg=4",
)


class Tiny(nn.Module):
    """A network that the reader would bring."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t, cond):
        return self.layer(x)


NAMES = {"my_network": Tiny(), "shape": (1, 8, 8)}  # what the pages leave to the reader


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.S | re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_run(page, tmp_path, monkeypatch, idx_folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "fashion-mnist").symlink_to(idx_folder)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    for line in "".join(blocks(page, "bash")).replace("\\\n", "").splitlines():
        words = shlex.split(line, comments=True)
        if not words or words[:2] == ["pip", "install"]:
            continue
        if words[0] == "make":
            assert words[1] in targets
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file()
        else:
            assert words[0] == "dmdistill", line
            main([*words[1:], *SMALL[words[1] if words[1] in SMALL else " ".join(words[1:3])].split()])


def indented(page: Path) -> list[list[str]]:
    """The commands that need weights or data of the reader's, which stand in no block of bash."""
    text = page.read_text(encoding="utf-8").replace("\\\n", "")
    lines = re.findall(r"^    (?:torchrun .* -m )?dmdistill (.*)$", text, flags=re.M)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("page", [page for page in PAGES if indented(page)], ids=lambda page: page.name)
def test_commands_that_need_more_are_understood(page):
    for words in indented(page):
        parse(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = dict(NAMES)
    for block in blocks(page, "python"):
        exec(compile(block.replace(*SMALL_PYTHON), str(page), "exec"), names)


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_tour_names_every_module():
    named, folder = set(), ""
    for line in (ROOT / "docs" / "tour.md").read_text(encoding="utf-8").split("Imports run one way")[0].splitlines():
        if start := re.match(r"      (?:(\w+)/|\w+\.py)", line):
            folder = f"{start[1]}/" if start[1] else ""
        named |= {folder + name for name in re.findall(r"\b\w+\.py\b", line)}
    package = ROOT / "src" / "dmdistill"
    modules = {file.relative_to(package).as_posix() for file in package.rglob("*.py") if not file.match("__*__.py")}
    assert named == modules


def test_every_page_is_in_the_contents():
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    for contents, link in (("mkdocs.yml", ": {}\n"), ("docs/index.md", "]({})"), ("README.md", "](docs/{})")):
        text = (ROOT / contents).read_text(encoding="utf-8")
        assert [page for page in pages if link.format(page) not in text] == []
