"""Files made by someone hostile: configs with values of another kind or size, and pickles of other opcodes.

Each is refused in one line, or read: never a traceback, never without bounds of time and memory. Checksums are made
anew, so that it is the checks of the values that are tested.
"""

import json
import random
import shutil

import pytest
import tomli_w
import torch

from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.info.command import info
from dmdistill.commands.info.config import InfoConfig
from dmdistill.commands.options import check
from dmdistill.commands.presets import from_preset, from_run, plain, preset_values, write_config
from dmdistill.data.image_sources import open_images
from dmdistill.data.pairs import open_pairs
from dmdistill.io.checksums import add_checksum
from dmdistill.metrics.classifier_features import load_classifier_features
from dmdistill.models.load import load_model
from dmdistill.models.model import Teacher
from dmdistill.networks.song_unet import SongUNet
from hard.formats import picture, write_pairs
from helpers import tiny_pipelines
from helpers.mutations import RAW, mutate_pickle, mutate_tree
from helpers.outcomes import Trial, faults
from helpers.tiny_models import unet2d_network

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
MODEL = {"images": 5, "seconds_per_image": 0.1, "metrics": {"fid": 2.0}}
CPU = torch.device("cpu")


def counts(few, many):
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.hard)])


def hard(many):
    return pytest.mark.parametrize("count", [pytest.param(many, marks=pytest.mark.hard)])


def mutate_files(trial, count, folder, files, mutate):
    """Read a folder with one of its files mutated, `count` times; each is put back."""
    rng = random.Random(f"{trial.name} {count}")
    for number in range(count):
        file = files[number % len(files)]
        content = file.read_bytes()
        file.write_bytes(changed := mutate(content, rng))
        trial(folder, file, repr(changed)[:2000])
        file.write_bytes(content)
    assert not faults(trial.name)


def mutate_json(content, rng):
    """Another tree, sealed with a checksum where the file had one; or some other text."""
    tree = json.loads(content)
    sealed = isinstance(tree, dict) and tree.pop("crc32", None) is not None
    tree = mutate_tree(tree, rng)
    if rng.random() < 0.03:
        return rng.choice(RAW)
    return json.dumps(add_checksum(tree) if sealed and isinstance(tree, dict) else tree).encode()


def images_of(folder):
    """Two images of a model, with few steps: a config may ask for very many."""
    model = load_model(str(folder))
    if isinstance(model, Teacher):
        object.__setattr__(model, "steps", 2)
    rng = torch.Generator().manual_seed(0)
    if model.text is not None:
        return model.text.encode(["red"]), model.decode(torch.randn(1, *model.shape, generator=rng)).tolist()
    return model.images(*model.sample_inputs(2, rng=rng)).tolist()


@counts(60, 1300)
def test_a_models_config(count, tiny_teacher, tmp_path):
    folder = shutil.copytree(tiny_teacher, tmp_path / "model")
    trial = Trial("model's config.json", images_of, folder, detects=False)
    mutate_files(trial, count, folder, [folder / "config.json"], mutate_json)


@counts(20, 300)
def test_a_classifiers_config(count, feature_extractor, tmp_path):
    folder = shutil.copytree(feature_extractor, tmp_path / "judge")
    trial = Trial("classifier's config.json", lambda f: load_classifier_features(str(f), CPU).id, folder, detects=False)
    mutate_files(trial, count, folder, [folder / "config.json"], mutate_json)


def all_pairs(pairs):
    return pairs[range(len(pairs))][0].tolist()


@counts(20, 300)
def test_a_description_of_pairs(count, tmp_path):
    write_pairs(tmp_path)
    trial = Trial("pairs.json", lambda f: all_pairs(open_pairs(f)), tmp_path, detects=False)
    mutate_files(trial, count, tmp_path, [tmp_path / "pairs.json"], mutate_json)


def mutate_lines(content, rng):
    """Another row in a log without checksums."""
    lines = content.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = json.dumps(mutate_tree(json.loads(lines[at]), rng)).encode()
    return b"\n".join(lines) + b"\n"


@counts(20, 400)
def test_the_log_and_the_report_of_a_run(count, tmp_path, capsys):
    values = {"loss_kl": 0.1, "gradient_fake": 1.0, **{f"gap_{i}": 0.1 for i in range(8)}}
    rows = [{"step": 10 * i, "seconds": 1.5 * i, **values} for i in range(1, 5)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = {"teacher": MODEL, "student": MODEL, "seconds": {}}
    (tmp_path / "report.json").write_text(json.dumps(add_checksum(report)))
    write_config(DistillConfig(), tmp_path / "config.toml")

    def told(folder):
        capsys.readouterr()
        info(InfoConfig(str(folder)))
        return capsys.readouterr().out

    trial = Trial("metrics.jsonl, report.json", told, tmp_path, detects=False)
    mutate_files(trial, count // 2, tmp_path, [tmp_path / "report.json"], mutate_json)
    mutate_files(trial, count // 2, tmp_path, [tmp_path / "metrics.jsonl"], mutate_lines)


def mutate_toml(values, rng):
    """Another table as TOML."""
    tree = mutate_tree(json.loads(json.dumps(values, default=str)), rng)
    if rng.random() < 0.05 or not isinstance(tree, dict):
        return rng.choice([*RAW, b"a = " + b"[" * 10**4, b"[" + b"a." * 10**4 + b"a]", b"a = 1e999", b"lr = nan"])
    try:
        return tomli_w.dumps(without_none(tree)).encode()
    except (RecursionError, UnicodeEncodeError, ValueError):
        return b"lr = 'x'"


def without_none(tree):
    """A tree of what TOML has."""
    if isinstance(tree, dict):
        return {str(key): without_none(value) for key, value in plain(tree).items()}
    return [without_none(one) for one in tree if one is not None] if isinstance(tree, list) else tree


@counts(10, 300)
def test_options_of_a_run_and_of_a_preset(count, tmp_path):
    values = preset_values(DistillConfig, "fashion")
    (tmp_path / "x.toml").write_text(tomli_w.dumps(values))
    write_config(DistillConfig(), tmp_path / "config.toml")

    def options(folder):
        one, other = from_preset(DistillConfig, str(folder / "x.toml")), from_run(DistillConfig, folder)
        check(one)
        check(other)
        return repr((one, other))

    trial = Trial("config.toml, presets", options, tmp_path, detects=False)
    mutate_files(trial, count // 2, tmp_path, [tmp_path / "x.toml"], lambda _, rng: mutate_toml(values, rng))
    mutate_files(trial, count // 2, tmp_path, [tmp_path / "config.toml"], lambda _, rng: mutate_toml(values, rng))


@counts(20, 1100)
def test_a_pipeline_of_pixels(count, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=20)
    diffusers.DDPMPipeline(unet=unet2d_network(), scheduler=scheduler).save_pretrained(tmp_path)
    names = ("model_index.json", "unet/config.json", "unet/config.json", "scheduler/scheduler_config.json")
    trial = Trial("configs of diffusers", images_of, tmp_path, detects=False)
    mutate_files(trial, count, tmp_path, [tmp_path / name for name in names], mutate_json)


@hard(500)
def test_a_pipeline_with_text(count, tmp_path):
    pytest.importorskip("diffusers")
    tiny_pipelines.tiny("stable_diffusion", tmp_path / "pipeline")
    names = ("model_index.json", "text_encoder/config.json", "vae/config.json", "unet/config.json")
    files = [tmp_path / "pipeline" / name for name in names]
    files += sorted((tmp_path / "pipeline" / "tokenizer").glob("*.json"))
    trial = Trial("configs of diffusers, text", lambda f: repr(images_of(f)), tmp_path / "pipeline", detects=False)
    mutate_files(trial, count, tmp_path / "pipeline", files, mutate_json)


@counts(30, 1100)
def test_an_edm_checkpoint(count, edm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kwargs = {"img_resolution": 8, "in_channels": 3, "out_channels": 3, "label_dim": 0, "model_channels": 8}
    edm.write(tmp_path / "x.pkl", SongUNet(**kwargs, channel_mult=[1]), kwargs | {"channel_mult": [1]})
    trial = Trial("EDM checkpoint", lambda f: images_of(f / "x.pkl"), tmp_path, detects=False)
    mutate_files(trial, count, tmp_path, [tmp_path / "x.pkl"], mutate_pickle)
    assert not (tmp_path / "canary").exists()


@counts(10, 200)
def test_the_labels_of_a_zip(count, tmp_path):
    for name in ("0.png", "1.png", "2.png"):
        (tmp_path / name).write_bytes(picture(3, "PNG"))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": [["0.png", 0], ["1.png", 1], ["2.png", 2]]}))

    def read(folder):
        images = open_images(str(folder))
        return images.images(range(len(images))).tolist(), repr(getattr(images, "labels", None))

    trial = Trial("dataset.json", read, tmp_path, detects=False)
    mutate_files(trial, count, tmp_path, [tmp_path / "dataset.json"], mutate_json)
