"""`dmdistill presets`: every preset has its line, and what is printed of one is the same preset."""

import subprocess
import sys

import pytest

from dmdistill.commands.cli import main
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.options import change
from dmdistill.commands.pairs.config import PairsConfig
from dmdistill.commands.presets import from_preset, preset_names, preset_values
from dmdistill.commands.teach.config import TeachConfig


def test_every_preset_has_one_line_below_its_teacher(capsys):
    main(["presets"])
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert sorted(rows) == preset_names()
    assert all(len(line.split()) > 3 for line in rows.values())
    assert rows["imagenet64-dmd2"].split()[1] == "dmd2"
    assert rows["imagenet64-dmd2"].endswith("first of two stages: no GAN, FID 2.61 there.")
    assert lines.index("teacher: edm-imagenet-64x64-cond-adm") + 1 == lines.index(rows["imagenet64"])
    assert lines.index("teacher: your own, by --teacher") < lines.index(rows["flow-dmd2-lora"])
    assert lines.index("teacher: fashion") + 1 == lines.index(rows["fashion"])


@pytest.mark.parametrize("name", preset_names())
def test_what_is_printed_of_a_preset_is_the_same_preset(name, tmp_path, capsys):
    main(["presets", name])
    text = capsys.readouterr().out
    assert text.startswith(f"# {name}: ")
    assert "\nbase = " not in text
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    mine = str(tmp_path / "mine.toml")
    for kind in (DistillConfig, PairsConfig, TeachConfig):
        assert bool(preset_values(kind, mine)) == bool(preset_values(kind, name))
        if preset_values(kind, name):
            assert change(from_preset(kind, mine), preset="") == change(from_preset(kind, name), preset="")


def test_a_file_of_ones_own_is_shown_with_its_base_and_method(tmp_path, capsys):
    (tmp_path / "mine.toml").write_text('base = "fashion-dmd2"\nfake_steps = 3\n[pairs]\nseed = 4\n', encoding="utf-8")
    main(["presets", str(tmp_path / "mine.toml")])
    lines = capsys.readouterr().out.splitlines()
    assert {'method = "dmd2"', "lambda_reg = 0.0", "fake_steps = 3", 'teacher = "fashion"'} <= set(lines)
    assert lines[-2:] == ["[pairs]", "seed = 4"]


def test_an_unknown_preset_is_one_line(error_line):
    assert "unknown preset 'fashoin'; did you mean 'fashion'?" in error_line("presets", "fashoin")


def test_presets_are_listed_without_torch():
    code = "import sys\nfrom dmdistill.commands.cli import main\nmain(['presets'])\nassert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0
