"""Hashes of files: of their contents, cached, whatever happens to the cache."""

import json
import os

import pytest

from dmdistill.io import file_hashes
from dmdistill.io.file_hashes import hash_files


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path / "cache"))
    for name in "ab":
        (tmp_path / name).write_text(name)
    return [tmp_path / "a", tmp_path / "b"]


@pytest.mark.parametrize("spoilt", ["", "{", "[]", "3", "{}", '{"sha256": 3}', '{"sha256": "xyz"}'])
def test_a_damaged_cache_is_none(spoilt, files, tmp_path):
    before = hash_files(files, "note")
    (cached,) = (tmp_path / "cache" / "digests").iterdir()
    cached.write_text(spoilt)
    assert hash_files(files, "note") == before
    assert json.loads(cached.read_text())["sha256"] == before


def test_a_cache_that_cannot_be_written_is_none(files, tmp_path):
    before = hash_files(files)
    (tmp_path / "file").touch()
    os.environ["DMDISTILL_CACHE"] = str(tmp_path / "file" / "below")  # restored by the fixture's monkeypatch
    assert hash_files(files) == before


def test_files_that_stay_as_they_are_are_read_once(files, monkeypatch):
    before = hash_files(files)
    monkeypatch.setattr(file_hashes.hashlib, "file_digest", lambda *_: pytest.fail("it was read again"))
    assert hash_files(files) == before


def test_contents_order_and_note_count(files):
    assert len({hash_files(files), hash_files(files[::-1]), hash_files(files, "x"), hash_files(files[:1])}) == 4
    before = hash_files(files)
    files[0].write_text("other")
    assert hash_files(files) != before
