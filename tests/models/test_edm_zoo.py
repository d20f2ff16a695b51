"""EDM's published models: downloaded once and whole, or one line that says what to do. No network is asked."""

import threading

import pytest
import torch

from dmdistill.commands.cli import main
from dmdistill.data.pairs import open_pairs
from dmdistill.io.folders import cache_folder
from dmdistill.models import edm_zoo as module
from dmdistill.models.edm_zoo import NAMES, download_checkpoint, summary
from dmdistill.models.load import load_teacher
from dmdistill.networks.song_unet import SongUNet
from helpers.http_server import Server

NAME = "edm-cifar10-32x32-cond-vp"
KWARGS = {"img_resolution": 32, "in_channels": 3, "out_channels": 3, "label_dim": 10, "num_blocks": 1}
KWARGS |= {"model_channels": 8, "channel_mult": [1], "attn_resolutions": []}


@pytest.fixture
def data(edm, tmp_path):
    torch.manual_seed(0)
    return edm.write(tmp_path / "source.pkl", SongUNet(**KWARGS), KWARGS).read_bytes()


@pytest.fixture
def server(tmp_path, monkeypatch, data):
    server = Server()
    server.data = data
    monkeypatch.setenv("DMDISTILL_EDM_URL", f"{server.url}/models/")
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.close()


def refused(match):
    with pytest.raises(ValueError, match=match) as caught:
        download_checkpoint(NAME)
    assert "\n" not in str(caught.value)
    assert not (cache_folder() / f"{NAME}.pkl").exists()
    return str(caught.value)


def test_a_model_is_downloaded_once(server, data):
    teacher = load_teacher(NAME)
    assert (teacher.name, teacher.licence, teacher.conditions.names[0]) == (NAME, "CC-BY-NC-SA-4.0", "airplane")
    assert (cache_folder() / f"{NAME}.pkl").read_bytes() == data
    assert not (cache_folder() / f"{NAME}.pkl.part").exists()
    load_teacher(NAME)
    assert server.asked == [None]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_download_goes_on(ranges, server, data):
    server.cut, server.ranges = 700, ranges
    assert "700 of" in refused("the next attempt")
    server.cut = None
    assert download_checkpoint(NAME).read_bytes() == data
    assert server.asked == [None, "bytes=700-"]


def test_a_part_that_is_whole_or_too_long_is_settled(server, data):
    part = cache_folder() / f"{NAME}.pkl.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(data)
    assert download_checkpoint(NAME).read_bytes() == data
    download_checkpoint(NAME).unlink()
    part.write_bytes(data + b"more")
    assert download_checkpoint(NAME).read_bytes() == data
    assert server.asked == [f"bytes={len(data)}-", f"bytes={len(data) + 4}-", None]


def test_a_wrong_size_is_no_file(server, data):
    server.claim = len(data) + 10
    refused(f"{len(data)} of {len(data) + 10} bytes came")


@pytest.mark.parametrize("sent", [b"<html>come back later</html>", b"cposix\nsystem\n."])
def test_something_else_is_thrown_away(sent, server):
    server.data = sent
    refused("sent something else")
    assert not (cache_folder() / f"{NAME}.pkl.part").exists()


def test_the_servers_refusal_says_where_the_file_goes(server):
    server.code = 404
    error = refused("the server says 404")
    assert f"{server.url}/models/{NAME}.pkl" in error
    assert f"put the file at {cache_folder() / NAME}.pkl" in error


@pytest.mark.parametrize("location", ["http://127.0.0.1:9/nothing", "file:///etc/hostname"])
def test_a_redirect_to_nothing(location, server):
    server.code, server.location = 302, location
    refused("cannot be reached|the server says 302")


def test_without_a_network(server, monkeypatch):
    monkeypatch.setenv("DMDISTILL_EDM_URL", "http://127.0.0.1:9")
    error = refused("cannot be reached")
    assert f"http://127.0.0.1:9/{NAME}.pkl" in error
    assert f"put the file at {cache_folder() / NAME}.pkl" in error


def test_a_file_that_was_put_there_is_used_and_watched(server, data, capsys):
    file = cache_folder() / f"{NAME}.pkl"
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    assert download_checkpoint(NAME) == file
    assert "sha256" in capsys.readouterr().err
    assert download_checkpoint(NAME) == file
    assert capsys.readouterr().err == ""
    file.write_bytes(data[:-1] + b"!")
    with pytest.raises(ValueError, match="has changed since"):
        download_checkpoint(NAME)
    assert server.asked == []


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DMDISTILL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "dmdistill"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "dmdistill"
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_a_presets_teacher_is_found(server, tmp_path):
    """From the preset's name to pairs on disk, in the words of the command line."""
    main(["pairs", "--preset", "cifar10", "--out", str(tmp_path / "pairs"), "--pair-count", "2", "--device", "cpu"])
    assert open_pairs(tmp_path / "pairs").shape == (3, 32, 32)
    assert server.asked == [None]


def test_two_at_once_download_once(server, data):
    found = []
    threads = [threading.Thread(target=lambda: found.append(download_checkpoint(NAME).read_bytes())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [data] * 3
    assert len(server.asked) == 1


def test_the_summary_holds_all_names():
    def spread(pattern):
        head, brace, rest = pattern.partition("{")
        if not brace:
            return [pattern]
        words, _, tail = rest.partition("}")
        return [one for word in words.split(",") for one in spread(head + word + tail)]

    assert sorted(one for part in summary().split(", ") for one in spread(part)) == sorted(NAMES)
    assert len(NAMES) == len(set(NAMES)) == 9
    assert module.URL.startswith("https://")
