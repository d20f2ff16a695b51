"""Parts of error messages: one line, the nearest name, what to install."""

import sys

import pytest

from dmdistill.io.errors import did_you_mean, first_line, import_optional
from dmdistill.io.folders import check_new_folder


def test_the_first_line_of_a_message_or_the_class():
    assert first_line(ValueError("\n  one\ntwo\n")) == "one"
    assert first_line(KeyError()) == "KeyError"
    assert first_line(ValueError("  ")) == "ValueError"


def test_only_near_names_are_suggested():
    known = ["fid", "kid", "precision"]
    assert did_you_mean("fdi", known) == "; did you mean 'fid'?"
    assert did_you_mean("presicion", dict.fromkeys(known)) == "; did you mean 'precision'?"
    assert did_you_mean("something", known) == ""
    assert did_you_mean("", known) == ""


@pytest.mark.parametrize(("extra", "install"), [(None, "package"), ("diffusers", r"'dmdistill\[diffusers\]'")])
def test_a_missing_package_says_how_to_install_it(extra, install, monkeypatch):
    monkeypatch.setitem(sys.modules, "package", None)
    for module in ("package", "package.part"):
        with pytest.raises(ValueError, match=rf"^--flag needs package \(.*\): pip install {install}$"):
            import_optional(module, "--flag", extra=extra)
    assert import_optional("sys", "--flag") is sys


def test_a_new_folder_is_missing_or_empty_but_for_hidden_files(tmp_path):
    for name in ("missing", "empty", "hidden"):
        if name != "missing":
            (tmp_path / name).mkdir()
        if name == "hidden":
            (tmp_path / name / ".git").mkdir()
        check_new_folder(tmp_path / name, "choose another")
    (tmp_path / "file").touch()
    for full in (tmp_path, tmp_path / "file"):
        with pytest.raises(ValueError, match=f"^{full} already exists: choose another$"):
            check_new_folder(full, "choose another")
