"""Completion in a shell, as the shell does it."""

import shutil
import subprocess

import pytest

from dmdistill.commands.cli import main

PRESS_TAB = """
source {script}
complete_words() {{
  COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
  _tyro_dmdistill dmdistill "${{@: -1}}" "${{@: -2:1}}"
  echo "${{COMPREPLY[@]}}"
}}
complete_words dmdistill dis
complete_words dmdistill distill --fake-s
complete_words dmdistill distill --transition o
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    return tmp_path_factory.mktemp("scripts")


def test_bash_completes_commands_options_and_values(scripts, capsys):
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    main(["completion", "bash"])
    script = scripts / "dmdistill"
    script.write_text(capsys.readouterr().out)
    subprocess.run(["bash", "-n", script], check=True)
    command = ["bash", "--norc", "--noprofile", "-c", PRESS_TAB.format(script=script)]
    assert subprocess.check_output(command, text=True).split() == ["distill", "--fake-steps", "ode"]


def test_the_script_of_zsh_names_the_command(capsys):
    main(["completion", "zsh"])
    assert capsys.readouterr().out.startswith("#compdef dmdistill")
