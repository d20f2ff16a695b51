"""The weights of LPIPS are made of published files, found where they are, and downloaded where they are not."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dmdistill.commands.cli import main
from dmdistill.io.checksums import tensor_digest
from dmdistill.io.file_hashes import file_sha256
from dmdistill.metrics import lpips_weights
from dmdistill.metrics.lpips_weights import FILE, PUBLISHED, find_lpips, load_lpips, make_lpips, published_name
from helpers.http_server import Server
from helpers.lpips_sources import write_lpips_sources


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A folder with both files, and their weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sources")
    return folder, write_lpips_sources(folder)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, no assets, no file of torch's, and no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DMDISTILL_ASSETS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DMDISTILL_LPIPS_URL", "http://127.0.0.1:9")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def published(sources, monkeypatch):
    """Take the files of random weights for the published ones."""
    for name in ("VGG16", "HEADS"):
        source = getattr(lpips_weights, name)
        monkeypatch.setattr(lpips_weights, name, replace(source, sha256=file_sha256(sources[0] / source.name)))


def options(folder):
    return ["--vgg16", str(folder / "vgg16-397923af.pth"), "--heads", str(folder / "vgg.pth")]


def test_two_files_become_one_that_is_found(sources, cache, capsys):
    folder, weights = sources
    main(["convert", "lpips", *options(folder)])
    out, err = capsys.readouterr()
    assert out == f"LPIPS: 58.9 MB of weights in {cache / FILE}, found by all commands\n"
    assert "are not the published ones" in err  # random ones are not
    model = load_lpips()
    assert all(torch.equal(tensor, weights[published_name(name)]) for name, tensor in model.state_dict().items())
    assert load_file(cache / FILE).keys() == weights.keys()


def test_a_file_of_ones_own_name_is_given_and_never_overwritten(sources, tmp_path, capsys, error_line):
    main(["convert", "lpips", "mine.safetensors", *options(sources[0])])
    assert "give it by --lpips-weights mine.safetensors" in capsys.readouterr().out
    assert load_lpips(tmp_path / "mine.safetensors").resize == 224
    assert "mine.safetensors already exists" in error_line("convert", "lpips", "mine.safetensors")


def test_what_is_missing_is_downloaded_once(sources, published, cache, monkeypatch):
    """VGG16 is here, among torch's own downloads; the heads come from a server."""
    folder, weights = sources
    (hub := Path(torch.hub.get_dir()) / "checkpoints").mkdir(parents=True)
    (hub / "vgg16-397923af.pth").symlink_to(folder / "vgg16-397923af.pth")
    server = Server()
    server.data = (folder / "vgg.pth").read_bytes()
    monkeypatch.setenv("DMDISTILL_LPIPS_URL", server.url)
    try:
        assert find_lpips() == find_lpips() == cache / FILE
    finally:
        server.close()
    assert len(server.asked) == 1
    assert tensor_digest(load_file(cache / FILE)) == tensor_digest(weights)


def test_another_file_than_the_published_one_is_refused(sources, cache, monkeypatch):
    cache.mkdir()
    (cache / "vgg.pth").symlink_to(sources[0] / "vgg.pth")
    with pytest.raises(ValueError, match=rf"{cache}/vgg\.pth has sha256 \w+, the published one a78928a0") as error:
        find_lpips()
    assert "\n" not in str(error.value)


def test_without_a_network_the_error_says_it_all_in_a_line(tiny_teacher, cache, error_line):
    line = error_line("distill", "--teacher", tiny_teacher, "--distance", "lpips", "--device", "cpu")
    for part in (FILE, "$DMDISTILL_ASSETS (not set)", str(cache), "http://127.0.0.1:9/vgg.pth cannot be reached"):
        assert part in line
    for part in ("`dmdistill convert lpips`", "http://127.0.0.1:9/vgg16-397923af.pth", "--distance huber"):
        assert part in line
    assert not Path("runs").exists()


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("canary"),)


@pytest.mark.parametrize("content", [b"", b"<html>", pickle.dumps({"lin0": Evil()}), pickle.dumps([1, 2])])
def test_a_file_of_another_kind_is_named_and_never_run(content, sources, tmp_path, error_line):
    (tmp_path / "odd.pth").write_bytes(content)
    line = error_line("convert", "lpips", "--vgg16", sources[0] / "vgg16-397923af.pth", "--heads", tmp_path / "odd.pth")
    assert "odd.pth" in line
    assert not (tmp_path / "canary").exists()
    assert not (tmp_path / "cache" / FILE).exists()


def test_files_with_other_tensors_are_named(sources, tmp_path, error_line):
    folder, weights = sources
    torch.save({"lin0.model.1.weight": torch.zeros(1, 3, 1, 1)}, tmp_path / "few.pth")
    line = error_line("convert", "lpips", "--vgg16", folder / "vgg16-397923af.pth", "--heads", tmp_path / "few.pth")
    assert "is no LPIPS: lin0.model.1.weight is (1, 3, 1, 1), expected (1, 64, 1, 1)" in line
    assert "vgg.pth is no LPIPS: features.0.bias is missing" in error_line(
        "convert", "lpips", "--vgg16", folder / "vgg.pth", "--heads", folder / "vgg.pth"
    )
    torch.save([weights["features.0.bias"]], tmp_path / "list.pth")
    assert "list.pth holds a list, expected named tensors" in error_line(
        "convert", "lpips", "--vgg16", folder / "vgg.pth", "--heads", tmp_path / "list.pth"
    )


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["fashion"], "convert fashion: give the folder or file to write as well"),
        (["fashion", "out", "--heads", "vgg.pth"], "--vgg16 and --heads are for `dmdistill convert lpips`"),
        (["lpips", "--save-dtype", "fp16"], "--save-dtype fp16 is for teachers"),
    ],
)
def test_options_of_the_other_kind_are_refused(arguments, match, error_line):
    assert match in error_line("convert", *arguments)


ASSETS = Path(os.environ.get("DMDISTILL_ASSETS") or ".")


@pytest.mark.skipif(
    not (ASSETS / FILE).is_file(), reason=f"LPIPS's weights: set DMDISTILL_ASSETS to the folder of {FILE}"
)
def test_the_published_weights_stay_the_published_ones(tmp_path, capsys):
    write_lpips_sources(tmp_path, load_file(ASSETS / FILE))
    made = make_lpips(tmp_path / "made", vgg16=tmp_path / "vgg16-397923af.pth", heads=tmp_path / "vgg.pth")
    assert tensor_digest(load_file(made)) == PUBLISHED
    models = [load_lpips(file, resize=32) for file in (made, ASSETS.absolute() / FILE)]
    x, y = torch.rand(2, 2, 3, 20, 17, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(*(model(x, y) for model in models))
    assert capsys.readouterr().err == ""
