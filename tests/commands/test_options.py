"""Configurations: written and read back they are equal, and what the user says comes last."""

import dataclasses
import tomllib
from pathlib import Path

import pytest

from dmdistill.commands import options as config
from dmdistill.commands import presets as settings
from dmdistill.commands.classifier.config import ClassifierConfig
from dmdistill.commands.cli import COMMANDS, parse
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.schedule import Course
from dmdistill.commands.options import SolverOptions
from dmdistill.commands.pairs.config import PairsConfig
from dmdistill.commands.presets import check_numbers, overlay, presets, to_toml
from dmdistill.commands.teach.config import NetworkOptions, TeachConfig

CHANGED = [
    TeachConfig(
        data=Path('odd "name" \\ with\ttab'),
        network=NetworkOptions(channel_mult=(1, 2, 3), attn_resolutions=(14, 7)),
        lr=1e-5,
        betas=(0.5, 1.0),
        resume=Path("runs/before"),
        compute=config.ComputeOptions(threads=3),
    ),
    PairsConfig(ode=SolverOptions(solver="ddim", guidance=2.0), count=7),
    DistillConfig(match=False, lambda_end=0.0, halflives=(), pairs=Path("p"), lr=1e30, lpips_weights=Path("l")),
    DistillConfig(halflives=(1.0, 2.5, 1e-7), teacher="", distance="lpips", weight="sigma3"),
    ClassifierConfig(epochs=1),
]


def typed(value):
    """A value with the types of all that is in it: 1 == 1.0 must not pass."""
    if dataclasses.is_dataclass(value):
        return {field.name: typed(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return [typed(item) for item in value] if isinstance(value, tuple) else (type(value), value)


@pytest.mark.parametrize(
    "made",
    [*CHANGED, TeachConfig(), PairsConfig(), DistillConfig(), ClassifierConfig()],
    ids=lambda c: type(c).__name__,
)
def test_toml_and_back_is_equal(made):
    table = tomllib.loads(to_toml(dataclasses.asdict(made)))
    assert typed(overlay(type(made)(), table, "test")) == typed(made)


@pytest.mark.parametrize("name", presets())
def test_every_preset_fits_its_commands(name):
    for command in COMMANDS.values():
        if command.section:
            made = settings.with_preset(command.config(), name, command.section)
            assert made.preset == name
            assert {type(getattr(made, f.name)) for f in dataclasses.fields(made)}  # every field is there


PAPER = {  # teacher, pairs, Heun's steps, steps, batch, lr, lambda_reg: the appendix of Yin et al. (2024)
    "cifar10": ("edm-cifar10-32x32-cond-vp", 100_000, 18, 300_000, 392, 5e-5, 0.25),
    "cifar10-uncond": ("edm-cifar10-32x32-uncond-vp", 500_000, 18, 300_000, 392, 5e-5, 0.5),
    "imagenet64": ("edm-imagenet-64x64-cond-adm", 25_000, 256, 350_000, 336, 2e-6, 0.25),
}


@pytest.mark.parametrize("name", PAPER)
def test_presets_of_the_papers_models_are_the_papers(name):
    made = settings.with_preset(DistillConfig(), name, "distill")
    pairs = settings.with_preset(PairsConfig(), name, "pairs")
    ode = SolverOptions(solver="heun", solver_steps=PAPER[name][2])
    assert (made.teacher, made.pair_count, made.ode) == (pairs.teacher, pairs.count, pairs.ode)
    found = (made.teacher, made.pair_count, made.ode.solver_steps, made.steps, made.batch, made.lr, made.lambda_reg)
    assert (found, made.ode) == (PAPER[name], ode)
    assert (made.batch_reg, made.lr_fake) == (made.batch, made.lr)


OURS = ("fashion", "cifar10-tiny", "cifar10-small")  # what names of presets begin with whose teachers are taught here


@pytest.mark.parametrize("name", ["cifar10-tiny", "cifar10-small"])
def test_presets_with_more_updates_of_the_fake_score_differ_in_nothing_else_but_length(name):
    """Before distributions are matched their generators make the very same steps."""
    plain, more = (settings.with_preset(DistillConfig(), one, "distill") for one in (name, f"{name}-5to1"))
    pairs = [settings.with_preset(PairsConfig(), one, "pairs") for one in (name, f"{name}-5to1")]
    assert pairs[0] == dataclasses.replace(pairs[1], preset=name)
    assert more.fake_steps == 5
    assert Course(more).match_step == Course(plain).match_step
    own = ("preset", "out", "steps", "fake_steps", "match_from", "fake_from", "regress_until", "evaluate_every")
    assert more == dataclasses.replace(plain, **{key: getattr(more, key) for key in own})


@pytest.mark.parametrize(("name", "least", "most"), [("cifar10-tiny", 1e6, 2e6), ("cifar10-small", 10e6, 25e6)])
def test_presets_of_cifar_lead_from_images_to_a_student(name, least, most):
    """Each command finds what the one before it made; of the larger teacher all that travels is below 60 MB."""
    import torch

    from dmdistill.commands.teach.recipes import EDMRecipe
    from dmdistill.data.image_tensors import LabelledImages

    teach, pairs, distill = (
        settings.with_preset(kind(), name, section)
        for kind, section in ((TeachConfig, "teach"), (PairsConfig, "pairs"), (DistillConfig, "distill"))
    )
    assert (distill.teacher, distill.pair_count, distill.ode) == (pairs.teacher, pairs.count, pairs.ode)
    assert pairs.teacher == str(teach.out)
    with torch.device("meta"):
        data = LabelledImages(torch.zeros(1, 3, 32, 32), torch.zeros(1), tuple("abcdefghij"))
        parameters = sum(p.numel() for p in EDMRecipe(teach).new_teacher(data).network.parameters())
    assert least <= parameters <= most
    assert 4 * parameters < 58e6  # a light file; teacher and student in fp16


@pytest.mark.parametrize("name", [name for name in presets() if not name.startswith(OURS)])
def test_presets_of_published_models_name_one_and_keep_to_the_paper(name):
    from dmdistill.commands.distill.command import check
    from dmdistill.models.edm_zoo import NAMES

    made = settings.with_preset(DistillConfig(), name, "distill")
    assert made.teacher in (*NAMES, "stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert settings.with_preset(PairsConfig(), name, "pairs").teacher == made.teacher
    papers = (made.warmup, made.decay, made.clip, made.betas, made.weight_decay, made.weight, made.low, made.high)
    assert papers == (500, False, 10.0, (0.9, 0.999), 0.01, "eq8", 0.02, 0.98)
    with pytest.raises(ValueError, match="--distance lpips needs --lpips-weights FILE"):
        check(made)
    check(dataclasses.replace(made, lpips_weights=Path("weights.safetensors")))


def write(folder, text):
    file = folder / "mine.toml"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize(("word", "meant"), [("true", "blocks"), ("false", "none"), ('"norms"', "norms")])
def test_checkpointing_is_read_as_it_once_was_written(word, meant, tmp_path):
    made = settings.from_preset(DistillConfig, write(tmp_path, f"[distill]\ncheckpointing = {word}\n"))
    assert made.checkpointing == meant


def test_an_unknown_preset_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"unknown preset 'fashoin'; did you mean 'fashion'\? Known: .*fashion"):
        settings.with_preset(DistillConfig(), "fashoin", "distill")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[distill]\nlamda_reg = 1", "no setting 'lamda_reg'; did you mean 'lambda_reg'"),
        ("[distill.ode]\nsolvr = 'ddim'", r"ode: no setting 'solvr'; did you mean 'solver'"),
        ("[distill]\nqqq = 1", "no setting 'qqq'$"),
        ("[distill\n", "preset .*mine.toml: "),
    ],
)
def test_typos_in_a_preset_are_named(text, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        settings.with_preset(DistillConfig(), write(tmp_path, text), "distill")


def test_a_preset_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.toml does not exist"):
        settings.with_preset(DistillConfig(), str(tmp_path / "nothing.toml"), "distill")


def test_a_preset_keeps_the_types(tmp_path):
    text = """
    [distill]
    lr = 1
    betas = [0, 1]
    halflives = [20, 50.0]
    lambda_end = 0
    pairs = "somewhere"
    out = "else/where"
    [distill.ode]
    guidance = 3
    """
    made = settings.with_preset(DistillConfig(), write(tmp_path, text), "distill")
    expected = DistillConfig(
        preset=str(tmp_path / "mine.toml"),
        lr=1.0,
        betas=(0.0, 1.0),
        halflives=(20.0, 50.0),
        lambda_end=0.0,
        pairs=Path("somewhere"),
        out=Path("else/where"),
        ode=SolverOptions(guidance=3.0),
    )
    assert typed(made) == typed(expected)


@pytest.mark.parametrize(
    "text",
    ["steps = 'many'", "steps = 2.5", "match = 3", "lr = true", "ode = 3", "solver = 1", "betas = 0.9", "out = 4"],
)
def test_a_preset_of_wrong_types_is_refused(text, tmp_path):
    with pytest.raises(ValueError, match=text.split()[0]):
        settings.with_preset(DistillConfig(), write(tmp_path, f"[distill]\n{text}"), "distill")


def test_a_preset_without_the_section_changes_nothing(tmp_path):
    file = write(tmp_path, "[teach]\nsteps = 3")
    assert settings.with_preset(DistillConfig(), file, "distill") == DistillConfig(preset=file)


def test_flags_beat_the_preset_and_the_preset_the_defaults(tmp_path):
    file = write(tmp_path, "[distill]\nsteps = 3\nbatch = 5\n[distill.ode]\nsolver_steps = 9\n[teach]\nsteps = 4")
    for preset in (["--preset", file], [f"--preset={file}"]):
        asked = parse(["distill", *preset, "--steps", "7", "--halflives", "3", "--guidance", "2"])
        assert asked == DistillConfig(
            preset=file, steps=7, batch=5, halflives=(3.0,), ode=SolverOptions(solver_steps=9, guidance=2.0)
        )


def test_every_command_starts_from_the_fashion_preset():
    for name, command in COMMANDS.items():
        if command.section:
            assert parse([name]) == settings.with_preset(command.config(), "fashion", command.section)


def test_resume_takes_the_runs_settings_and_the_flags_over_them(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    before = DistillConfig(
        out=Path("elsewhere"), steps=33, lambda_end=0.1, ode=SolverOptions(solver="ddim"), pairs=Path("p")
    )
    (run / "config.toml").write_text(to_toml(dataclasses.asdict(before)))
    expected = dataclasses.replace(before, out=run, resume=run)
    assert parse(["distill", "--resume", str(run)]) == expected
    assert parse(["distill", f"--resume={run}", "--steps", "44"]) == dataclasses.replace(expected, steps=44)
    with pytest.raises(ValueError, match=r"config\.toml"):
        parse(["teach", "--resume", str(run)])
    with pytest.raises(ValueError, match=r"nowhere/config\.toml does not exist"):
        parse(["distill", "--resume", str(tmp_path / "nowhere")])


def test_every_setting_says_what_it_is():
    """A field's help is the string below it; one without has none."""
    import ast

    for node in ast.parse(Path(config.__file__).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            for field, text in zip(node.body[1::2], node.body[2::2], strict=True):
                assert isinstance(field, ast.AnnAssign)
                assert isinstance(text.value, ast.Constant)
                assert text.value.value.endswith(".")


NUMBERS = [
    (kind, field.name)
    for kind in (*(command.config for command in COMMANDS.values()), SolverOptions)
    for field in dataclasses.fields(kind)
    if "float" in str(field.type)
]


def configured(kind, **changes):
    """A configuration with what it must be given, or that of a command with the nested one."""
    needed = {
        config.EvaluateConfig: {"model": "fashion"},
        config.BenchConfig: {"model": "fashion"},
        config.SampleConfig: {"model": "f"},
    }
    needed |= {config.ReproduceConfig: {"what": "fig3"}}
    made = kind(**needed.get(kind, {}), **changes)
    return PairsConfig(ode=made) if kind is SolverOptions else made


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
@pytest.mark.parametrize(("kind", "name"), NUMBERS, ids=lambda one: getattr(one, "__name__", one))
def test_no_setting_is_nan_or_infinite(kind, name, odd):
    pair = "tuple" in next(str(field.type) for field in dataclasses.fields(kind) if field.name == name)
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} .*expected a finite number"):
        check_numbers(configured(kind, **{name: (odd, odd) if pair else odd}))


@pytest.mark.parametrize("kind", [command.config for command in COMMANDS.values() if hasattr(command.config, "seed")])
def test_every_seed_is_one_that_generators_take(kind):
    for seed in (-1, 2**63):
        with pytest.raises(ValueError, match=f"--seed {seed}, expected 0 to "):
            check_numbers(configured(kind, seed=seed))
