"""`dmdistill evaluate`: metrics depend on the images, not on batches, processes or formats."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from dmdistill.commands.evaluate import command as evaluating
from dmdistill.commands.evaluate import compute, partial_results
from dmdistill.commands.evaluate.command import evaluate
from dmdistill.commands.evaluate.config import EvaluateConfig
from dmdistill.commands.evaluate.feature_extraction import extract_features
from dmdistill.commands.evaluate.tables import print_comparison
from dmdistill.commands.options import ComputeOptions
from dmdistill.data.image_sources import open_images
from dmdistill.data.image_tensors import from_uint8
from dmdistill.distributed.process_group import ProcessGroup
from dmdistill.io.atomic import write_safetensors
from dmdistill.io.weights import bundled_models
from dmdistill.metrics.clip_score import ClipScore
from dmdistill.metrics.extraction import FeatureExtraction
from dmdistill.metrics.frechet import frechet_distance
from helpers.feature_statistics import feature_statistics
from helpers.tiny_models import save_student

MACHINE = ComputeOptions(device="cpu", precision="fp32", threads=1)
CPU = ["--device", "cpu", "--precision", "fp32", "--threads", "1"]
ALL = "fid,kid,precision,recall,density,coverage,is"


class SmallNetwork:
    """A few features and classes of an image of any size: a `ClassPredictor`."""

    id, name = "small", "inception"

    def __init__(self) -> None:
        self.images = 0
        rng = torch.Generator().manual_seed(0)
        self.weight = torch.randn(9, 6, generator=rng)
        self.pool = nn.AdaptiveAvgPool2d(3)

    def __call__(self, images):
        self.images += len(images)
        return (self.pool(from_uint8(images).mean(1, keepdim=True)).flatten(1) @ self.weight).tanh()

    def classify(self, images):
        features = self(images)
        return features, (3 * features).softmax(1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(evaluating, "seconds_per_image", lambda _, **__: 1.0)


@pytest.fixture
def network(monkeypatch):
    """Stands for Inception."""
    network = SmallNetwork()
    monkeypatch.setattr(compute, "load_inception", lambda *_, **__: network)
    return network


@pytest.fixture(scope="session")
def student(tiny_teacher, tmp_path_factory):
    """The folder of a student of 1 x 8 x 8 images without a feature extractor."""
    folder = tmp_path_factory.mktemp("models") / "student"
    save_student(str(tiny_teacher), folder)
    return folder


def write(folder, images):
    """N H W (C) bytes as PNG files."""
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture
def photos(tmp_path):
    """Grey pictures of 8 x 8, smooth as photographs are not, but various."""
    rng = np.random.default_rng(0)
    return write(tmp_path / "photos", rng.integers(0, 256, (60, 8, 8), dtype=np.uint8))


def run(model, reference=None, **settings):
    return evaluate(EvaluateConfig(str(model), reference=reference and str(reference), compute=MACHINE, **settings))


def test_batches_change_no_digit(student, photos, network):
    reports = [run(student, photos, metrics=ALL, images=300, batch=batch) for batch in (1, 7, 256)]
    assert reports[0] == reports[1] == reports[2]
    assert set(reports[0]["metrics"]) == {*ALL.split(","), "kid_error", "is_std"}
    assert (reports[0]["images"], reports[0]["seed"], reports[0]["reference"]) == (300, 1, str(photos))
    assert run(student, photos, metrics=ALL, images=300, seed=2)["metrics"] != reports[0]["metrics"]


def processes(count, *arguments):
    """Run the command in some processes, with torchrun's environment; return what each wrote and its exit code."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment |= {"WORLD_SIZE": str(count), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "dmdistill", *map(str, arguments)]
    started = [
        subprocess.Popen(
            command, env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True, stdout=-1, stderr=-1
        )
        for rank in range(count)
    ]
    return [(*one.communicate(timeout=120), one.returncode) for one in started]


def test_processes_change_no_digit(student, photos, tmp_path, monkeypatch):
    """Two share the generation and both sets, and only the first prints."""
    metrics = "frechet,kid,precision,recall,density,coverage"
    settings = {"metrics": metrics, "feature_extractor": "fashion-classifier", "images": 100, "batch": 7}
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    options = ["--reference", photos, "--json", tmp_path / "two.json", *CPU]
    (out, _, code), (nothing, _, other) = processes(2, "evaluate", student, *flags, *options)
    assert (code, other, nothing) == (0, 0, "")
    assert "tiny-student" in out
    two = json.loads((tmp_path / "two.json").read_text())
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path / "another"))
    one = run(student, photos, **settings)
    assert two["metrics"] == one["metrics"]
    assert {name.partition("_")[0] for name in one["metrics"]} >= {"frechet", "kid", "precision", "coverage"}


def test_shares_of_processes_add_up_to_all(photos):
    """Image for image: sums, splits of the Inception score, and whose features are stored."""
    source = open_images(str(photos))

    def extract(share):
        extraction = FeatureExtraction(SmallNetwork(), store_features=True, predict_classes=True)
        return extract_features(source, 60, [extraction], batch=7, processes=share, name="")[0]

    class Share(ProcessGroup):
        def gather(self, value):
            return [value]

    whole = extract(ProcessGroup())
    both = extract(Share(0, 2)) + extract(Share(1, 2))
    assert torch.equal(both.features, whole.features)
    assert both.classes.score() == pytest.approx(whole.classes.score(), rel=1e-12)
    for mine, theirs in ((both.moments.total, whole.moments.total), (both.moments.products, whole.moments.products)):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_the_report_is_written_as_json(tiny_teacher, tmp_path):
    """Of a model without a feature extractor: its speed only, and no image is generated."""
    report = run(tiny_teacher, None, images=4, json=tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text()) == report
    assert (report["model"], report["evaluations_per_image"], report["images"]) == ("tiny", 35, 0)
    assert report["metrics"] == {}


def test_a_set_compared_with_itself_is_itself(photos, tmp_path, network):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for file in photos.iterdir():
            archive.write(file, file.name)
    report = run(tmp_path / "x.zip", photos, metrics=ALL)
    values = report["metrics"]
    assert values["fid"] == pytest.approx(0, abs=1e-5)
    assert (values["precision"], values["recall"], values["coverage"]) == (1, 1, 1)
    others = [report[name] for name in ("evaluations_per_image", "seconds_per_image", "seed", "images")]
    assert others == [None, None, None, 60]


def test_values_are_those_of_all_features_at_once(student, photos, network):
    report = run(student, photos, metrics="fid,is", images=50, batch=11)
    from dmdistill.commands.evaluate.generated_images import GeneratedImages
    from dmdistill.models.load import load_model

    drawn = GeneratedImages(load_model(str(student)), 50, seed=1).images(range(50))
    real = open_images(str(photos)).images(range(60))
    expected = frechet_distance(feature_statistics(network, [drawn]), feature_statistics(network, [real]))
    assert report["metrics"]["fid"] == pytest.approx(expected, rel=1e-3)
    p = network.classify(drawn)[1].double()
    hands = [p[hand::10] for hand in range(10)]
    scores = torch.stack([(q * (q.log() - q.mean(0).log())).sum(1).mean().exp() for q in hands])
    assert report["metrics"]["is"] == pytest.approx(scores.mean().item(), rel=1e-3)


def test_features_of_a_reference_are_extracted_once(student, photos, network, capsys):
    first = run(student, photos, metrics="fid,recall", images=20)
    assert network.images == 60 + 20
    assert "cached" not in capsys.readouterr().err
    again = run(student, photos, metrics="recall,fid", images=20)
    assert network.images == 60 + 20 + 20
    assert f"the features of {photos} are cached in" in capsys.readouterr().err
    assert again["metrics"] == first["metrics"]
    Image.new("L", (8, 8)).save(photos / "more.png")
    run(student, photos, metrics="fid", images=20)
    assert network.images == 60 + 20 + 20 + 61 + 20


@pytest.mark.parametrize("part", ["features", "statistics", "digests"])
@pytest.mark.parametrize("damage", ["a bit", "truncated", "another set"])
def test_a_damaged_cache_is_extracted_again(part, damage, student, photos, network, cache, tmp_path, capsys):
    first = run(student, photos, metrics="fid,recall", images=20)
    [file] = (tmp_path / "cache").rglob(f"{part}*.safetensors" if part != "digests" else "digests/*.json")
    content = file.read_bytes()
    if damage == "a bit":
        file.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
    elif damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif part == "digests":
        file.write_text('{"sha256": ["x"]}')
    else:
        write_safetensors(file, {"features": torch.zeros(7, 6)})
    network.images = 0
    assert run(student, photos, metrics="fid,recall", images=20) == first
    if part != "digests":
        assert network.images == 60 + 20
        assert "cannot be used and are extracted again" in capsys.readouterr().err
    network.images = 0
    assert run(student, photos, metrics="fid,recall", images=20) == first
    assert network.images == 20 or part == "digests"


@pytest.mark.parametrize("kind", ["a file", "within a file", "a dangling link"])
def test_a_cache_that_cannot_be_written_is_no_error(kind, student, photos, network, tmp_path, monkeypatch):
    monkeypatch.setattr(partial_results, "SAVE_SECONDS", 0.0)
    expected = run(student, photos, metrics="fid,recall", images=20)
    place = tmp_path / "place"
    if kind == "a dangling link":
        place.symlink_to("/proc/nothing")
    else:
        place.write_text("no folder")
    monkeypatch.setenv("DMDISTILL_CACHE", str(place / "below" if kind == "within a file" else place))
    network.images = 0
    assert run(student, photos, metrics="fid,recall", images=20) == expected
    assert network.images == 60 + 20


@pytest.fixture
def interrupted(tmp_path, photos):
    """The folder of a run that has sample grids and no student yet."""
    folder = tmp_path / "interrupted"
    folder.mkdir()
    for name in ("config.toml", "metrics.jsonl"):
        (folder / name).write_text("")
    photos.rename(folder / "samples")
    return folder


def test_grids_of_an_interrupted_run_are_not_measured(interrupted, student, error_line, network):
    """Neither as the images to measure nor as those to compare with."""
    line = error_line("evaluate", interrupted, "--metrics", "fid", "--reference", interrupted, *CPU)
    assert line == error_line("sample", interrupted, *CPU)
    assert f"{interrupted} is the folder of a run that has no model yet" in line
    line = error_line("evaluate", student, "--reference", interrupted, *CPU)
    assert f"--reference {interrupted} is the folder of a model or run" in line
    assert f"model:{interrupted}" in line


def test_a_tilde_is_the_home_folder(student, photos, network, tmp_path, monkeypatch):
    """In every path that a shell leaves alone: --reference=~/photos."""
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = run(student, photos, metrics="fid", images=20)["metrics"]
    assert run(student, "~/photos", metrics="fid", images=20)["metrics"] == expected
    assert run("~/photos", "~/photos", metrics="fid")["metrics"]["fid"] == pytest.approx(0, abs=1e-4)
    known = feature_statistics(network, [open_images(str(photos)).images(range(60))])
    np.savez(tmp_path / "x.npz", mu=known.mean.numpy(), sigma=known.covariance.numpy())
    assert run(student, "~/x.npz", metrics="fid", images=20)["metrics"] == expected
    shutil.copytree(bundled_models()["fashion-classifier"], tmp_path / "classifier")
    settings = {"metrics": "frechet", "images": 9}
    by_name = run("fashion-student", feature_extractor="fashion-classifier", **settings)["metrics"]
    assert run("fashion-student", feature_extractor="~/classifier", **settings)["metrics"] == by_name


def test_names_with_brackets_are_printed_as_they_are(photos, network, tmp_path, capsys):
    """Square brackets are markup for the library that prints tables."""
    (tmp_path / "[bold]a[").mkdir()
    folder = photos.rename(tmp_path / "[bold]a[" / "red]")
    run(folder, folder, metrics="fid")
    captured = capsys.readouterr()
    assert f"compared with {folder}" in captured.out
    assert f"extracting features of {folder} 60/60" in captured.out
    assert "FID of 60 images" in captured.err


def test_a_report_says_what_is_compared_and_which_direction_is_better(student, photos, network, capsys):
    run(student, photos, metrics="kid,recall", images=20)
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]
    assert [row[0] for row in rows] == ["images", "KID", "KID error", "recall", "evaluations/image", "ms/image"]
    assert [row[2] for row in rows[:4]] == ["", "lower is better", "", "higher is better"]
    assert f"compared with {photos} (60 images)\n" in printed
    assert "give real images" not in printed
    report = run("fashion-student", metrics="frechet", images=20)
    printed = capsys.readouterr().out
    assert "Frechet distance (fashion-classifier)" in printed
    assert report["compared_with"] == "the 60000 images that fashion-classifier was trained on"
    assert (
        f"compared with {report['compared_with']}\nfor FID, KID, precision, recall, density, coverage give" in printed
    )


def test_without_a_reference_a_report_says_how_to_give_one(student, capsys):
    report = run(student, images=4)
    assert (report["metrics"], report["reference"], report["compared_with"]) == ({}, None, None)
    printed = capsys.readouterr().out
    assert "no quality was measured: for FID, KID, precision, recall, density, coverage give real images" in printed
    assert "by --reference DATA, a folder or zip of images, the files of CIFAR-10 or an IDX set, or EDM's" in printed


@pytest.mark.parametrize("left", ["intact", "damaged"])
@pytest.mark.parametrize("killed", [1, 2, 4, 7])
def test_a_killed_evaluation_is_resumed(killed, left, student, photos, network, cache, tmp_path, monkeypatch):
    """To the same digits, without extracting what was saved: all but the current block."""
    settings = {"metrics": ALL, "images": 400, "batch": 50}  # one block of the reference, seven of the student
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path / "another"))
    whole = run(student, photos, **settings)
    assert not list((tmp_path / "another").glob("extractions/*")), "what takes no minute keeps nothing"
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(partial_results, "SAVE_SECONDS", 0.0)
    calls, call, probe = [], SmallNetwork.__call__, 1  # an empty image first, to see whether it tells classes

    def interrupted(self, images):
        calls.append(len(images))
        if len(calls) == probe + killed:
            raise KeyError("killed")
        return call(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(SmallNetwork, "__call__", interrupted)
        with pytest.raises(KeyError, match="killed"):
            run(student, photos, **settings)
    for file in (tmp_path / "cache").glob("extractions/*"):
        if left == "damaged":
            file.write_bytes(file.read_bytes()[:-30])
    network.images = 0
    assert run(student, photos, **settings) == whole
    reference = 0 if killed > 1 else 60
    drawn = 400 - (64 * max(0, killed - 2) if left == "intact" else 0)
    assert network.images == probe + reference + drawn
    assert not list((tmp_path / "cache").glob("extractions/*"))


def test_statistics_of_edm_are_a_reference(student, photos, tmp_path, network):
    known = feature_statistics(network, [open_images(str(photos)).images(range(60))])
    np.savez(tmp_path / "reference.npz", mu=known.mean.numpy(), sigma=known.covariance.numpy())
    report = run(student, tmp_path / "reference.npz", metrics="fid", images=20)
    assert report["metrics"] == run(student, photos, metrics="fid", images=20)["metrics"]


def test_what_a_teacher_draws_is_a_reference(student, tiny_teacher, network):
    report = run(student, f"model:{tiny_teacher}", images=12)
    assert report["metrics"] == run(f"model:{student}", f"model:{tiny_teacher}", images=12)["metrics"]
    assert report["metrics"]["fid"] > 0
    itself = run(student, f"model:{student}", metrics="fid", images=400)
    assert 0 < itself["metrics"]["fid"] < report["metrics"]["fid"]  # noise of its own


def test_a_side_brings_both_to_one_size(student, tmp_path, network):
    rng = np.random.default_rng(0)
    big = write(tmp_path / "big", rng.integers(0, 256, (20, 11, 9), dtype=np.uint8))
    assert run(student, big, metrics="fid", images=20, side=6)["metrics"]["fid"] > 0


def test_prompts_belong_to_pictures_by_number(photos, tmp_path, monkeypatch):
    """A score that is 1 where the prompt tells the first pixel."""
    pixels = open_images(str(photos)).images(range(60))[:, 0, 0, 0].tolist()
    (tmp_path / "prompts.txt").write_text("\n".join(map(str, pixels)))

    class FirstPixel(ClipScore):
        def __init__(self) -> None:
            self.id = "first-pixel"

        def __call__(self, images, prompts):
            return torch.tensor([float(int(image[0, 0, 0]) == int(text)) for image, text in zip(images, prompts)])  # noqa: B905

    monkeypatch.setattr(compute, "load_clip", lambda *_, **__: FirstPixel())
    settings = {"metrics": "clip", "clip": "any", "prompts": str(tmp_path / "prompts.txt")}
    assert run(photos, batch=7, **settings)["metrics"] == {"clip": 1.0}


def test_diversity_is_that_of_the_pictures_of_each_prompt(photos, network, tmp_path):
    """A prompt stands for as many pictures as there are lines of it, wherever they stand; batches change nothing."""
    prompts = [f"prompt {number * number % 7}" for number in range(60)]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    units = F.normalize(network(open_images(str(photos)).images(range(60))).double())
    means = []
    for text in set(prompts):
        mine = units[[i for i, one in enumerate(prompts) if one == text]]
        pairs = [1 - float(a @ b) for a, b in combinations(mine, 2)]
        means.append(sum(pairs) / len(pairs))
    found = run(photos, metrics="diversity", prompts=str(tmp_path / "prompts.txt"), batch=7)
    assert found["metrics"] == {"diversity": pytest.approx(sum(means) / len(means), rel=1e-3)}
    settings = {"prompts": str(tmp_path / "prompts.txt"), "feature_extractor": "fashion-classifier"}
    other = run(photos, metrics="diversity", **settings)
    assert (list(other["metrics"]), other["compared_with"]) == (["diversity_fashion-classifier"], None)


def test_damaged_pictures_are_left_out_and_counted(photos, network, capsys):
    for name in ("003.png", "017.png"):
        (photos / name).write_bytes(b"no picture")
    report = run(photos, photos, metrics="fid", skip_corrupt=True, batch=9)
    assert (report["images"], report["metrics"]["fid"]) == (58, 0)
    assert f"2 images of {photos} cannot be read and were skipped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("metrics", "images", "match"),
    [
        ("fid", 20, "FID of 20 images is far above"),
        ("kid", 20, "the subsets of KID have 20 images"),
        ("recall", 20, "recall of 20 images against 60"),
    ],
)
def test_counts_that_mislead_are_said(metrics, images, match, student, photos, network, capsys):
    run(student, photos, metrics=metrics, images=images)
    assert match in capsys.readouterr().err


@pytest.fixture
def given(student, photos, tmp_path):
    """Words in place of what they name."""
    rng = np.random.default_rng(0)
    write(tmp_path / "large", rng.integers(0, 256, (9, 5, 7), dtype=np.uint8))
    write(tmp_path / "coloured", rng.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8))
    write(tmp_path / "three", rng.integers(0, 256, (3, 8, 8), dtype=np.uint8))
    write(tmp_path / "damaged", rng.integers(0, 256, (9, 8, 8), dtype=np.uint8))
    (tmp_path / "damaged" / "004.png").write_bytes(b"no picture")
    np.savez(tmp_path / "x.npz", mu=np.zeros(6), sigma=np.eye(6))
    (tmp_path / "prompts.txt").write_text("a\nb\n")
    (tmp_path / "three.txt").write_text("a\nb\nc\n")
    names = {"STUDENT": student, "PHOTOS": photos}
    return lambda word: str(names.get(word) or (tmp_path / word if (tmp_path / word).exists() else word))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ("STUDENT --metrics fdi", "unknown metric 'fdi'; did you mean 'fid'?"),
        ("STUDENT --metrics fid,,kid --reference PHOTOS", "--metrics 'fid,,kid' has an empty name"),
        ("STUDENT --metrics ,", "--metrics ',' has an empty name"),
        ("STUDENT --metrics fid", "--metrics fid compares with real images: give them by --reference"),
        ("STUDENT --metrics clip", "--metrics clip needs --clip"),
        ("STUDENT --metrics clip --clip x", "--metrics clip needs the images' prompts: give --prompts"),
        ("PHOTOS --metrics clip --clip x --prompts prompts.txt", "--prompts has 2 prompts for 60 images"),
        ("PHOTOS --metrics diversity", "--metrics diversity needs the images' prompts: give --prompts"),
        (
            "three --metrics diversity --prompts three.txt",
            "diversity compares images of one prompt, and 3 images have as",
        ),
        ("STUDENT --metrics frechet", "--metrics frechet: tiny-student has no feature extractor"),
        (
            "STUDENT --reference large",
            "large has images of 1 channel(s), 5 x 7 pixels, tiny-student's have 1 channel(s), 8 x 8 pixels",
        ),
        (
            "STUDENT --reference coloured",
            "coloured has images of 3 channel(s), 8 x 8 pixels, tiny-student's have 1 channel(s)",
        ),
        ("coloured --feature-extractor fashion-classifier", "takes images of 1 channel(s)"),
        ("STUDENT --reference three --metrics density", "--metrics density needs at least 6 images"),
        ("three --metrics is", "--metrics is needs at least 10 images"),
        ("PHOTOS --images 61 --reference PHOTOS", "--images 61 is more than the 60 images"),
        ("STUDENT --reference damaged --images 9", "1 of 9 images cannot be read, first 004.png"),
        ("damaged --reference PHOTOS", "1 of 9 images cannot be read, first 004.png"),
        ("STUDENT --reference x.npz --metrics kid", "x.npz has only statistics"),
        ("STUDENT --reference x.npz --images 9", "x.npz holds statistics of 6 features, "),
        ("STUDENT --reference nowhere", "nowhere does not exist"),
        ("STUDENT --reference nowhere.npz", "nowhere.npz does not exist"),
        ("STUDENT --images 1", "--images 1, expected from 2"),
        ("STUDENT --images 100000000000000", "--images 100000000000000"),
        ("STUDENT --side 1000000", "--side 1000000, expected from 1"),
        ("STUDENT --batch 0", "--batch 0, expected at least 1"),
        ("STUDENT --seed -1", "--seed -1, expected 0 to"),
        ("STUDENT --side 0", "--side 0, expected from 1"),
        ("nothing", "unknown model 'nothing'"),
    ],
)
def test_bad_input_is_one_line(arguments, match, given, error_line, network, monkeypatch):
    if "x.npz --images" in arguments:
        network.weight = network.weight[:, :5]
        match += "inception has 5"
    assert match in error_line("evaluate", *map(given, arguments.split()), *CPU)


def test_missing_weights_are_one_line(student, photos, error_line, monkeypatch):
    monkeypatch.delenv("DMDISTILL_ASSETS", raising=False)
    monkeypatch.setenv("DMDISTILL_INCEPTION_URL", "http://127.0.0.1:9")
    line = error_line("evaluate", student, "--reference", photos, "--images", 5, *CPU)
    assert "cannot be reached" in line
    assert "inception-2015-12-05.pt" in line
    line = error_line("evaluate", student, "--reference", photos, "--inception", "none.pt", *CPU)
    assert "none.pt cannot be read" in line


def test_a_file_without_classes_is_said_before_anything_is_drawn(student, network, error_line, monkeypatch):
    def classify(_):
        raise ValueError("this copy lacks the last layer")

    monkeypatch.setattr(network, "classify", classify)
    assert "lacks the last layer" in error_line("evaluate", student, "--metrics", "is", "--images", 20, *CPU)


@pytest.mark.slow
def test_inception_measures_pictures(photos):
    """Real weights: some pictures of a set are within it."""
    if not os.environ.get("DMDISTILL_ASSETS"):
        pytest.skip("Inception: set DMDISTILL_ASSETS to the folder of inception-2015-12-05.pt")
    report = run(photos, photos, metrics="fid,precision", images=8)
    assert report["metrics"]["precision"] == 1
    assert report["metrics"]["fid"] > 0  # 8 of the 60


def test_a_narrow_terminal_breaks_names_and_cuts_none(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "50")
    values = {"metrics": {"frechet_fashion-classifier": 1.5}, "evaluations_per_image": 1, "seconds_per_image": 1e-3}
    report = {"reference": None, "compared_with": "", "images": 10, **values}
    print_comparison([report | {"model": name} for name in ("fashion", "fashion-student-of-a-long-name")])
    text = capsys.readouterr().out
    assert "…" not in text
    assert re.sub(r"[^a-z-]", "", text).count("classifier") == 1
