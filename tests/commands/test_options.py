"""Options: written and read back they are equal, and what the user types comes last."""

import ast
import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dmdistill.commands.cli import COMMANDS, parse
from dmdistill.commands.distill.config import DistillConfig
from dmdistill.commands.distill.schedule import PhaseSchedule
from dmdistill.commands.options import ComputeOptions, SolverOptions, change, check, option_values
from dmdistill.commands.pairs.config import PairsConfig
from dmdistill.commands.plan.config import PlanConfig
from dmdistill.commands.presets import (
    from_method,
    from_preset,
    from_run,
    preset_names,
    preset_values,
    recommended_presets,
    write_config,
)
from dmdistill.commands.run_folder import setup_compute
from dmdistill.commands.teach.config import TeachConfig

CHANGED = [
    change(
        TeachConfig(),
        data=Path('odd "name" \\ with\ttab'),
        channel_mult=(1, 2, 3),
        attn_resolutions=(14, 7),
        lr=1e-5,
        betas=(0.5, 1.0),
        resume=Path("runs/before"),
        threads=3,
    ),
    change(PairsConfig(), solver="ddim", guidance=2.0, pair_count=7, teacher="--odd name"),
    change(DistillConfig(), match=False, lambda_end=0.0, ema_halflives=(), pairs=Path("p"), lr=1e30),
    change(DistillConfig(), ema_halflives=(1.0, 2.5, 1e-7), teacher="", distance="lpips", weight="sigma3"),
]
KINDS = [TeachConfig, PairsConfig, DistillConfig, PlanConfig]


def typed(config):
    """The values of a configuration with their types: 1 == 1.0 must not pass."""
    values = option_values(config).items()
    return {name: [(type(v), v) for v in (value if isinstance(value, tuple) else [value])] for name, value in values}


def resolved(kind, name):
    """A preset's configuration."""
    return from_preset(kind, name)


@pytest.mark.parametrize("config", [*CHANGED, *(kind() for kind in KINDS)], ids=lambda c: type(c).__name__)
def test_a_configuration_written_and_read_back_is_equal(config, tmp_path):
    write_config(config, tmp_path / "config.toml")
    again = from_run(type(config), tmp_path) if hasattr(config, "resume") else None
    if again is not None:
        assert typed(again) == typed(change(config, out=tmp_path, resume=tmp_path))
    preset = str(tmp_path / "mine.toml")
    _, table = (tmp_path / "config.toml").read_text().split("\n", 1)  # without its checksum
    Path(preset).write_text(f"[teach]\n{table}".replace("\n[", "\n[teach.") if type(config) is TeachConfig else table)
    assert typed(from_preset(type(config), preset)) == typed(change(config, preset=preset))


def test_change_finds_an_option_in_its_group_and_refuses_others():
    assert change(DistillConfig(), lr=3.0, solver="ddim").optimizer.lr == 3.0
    assert change(DistillConfig(), ode=SolverOptions(guidance=2.0)).ode.guidance == 2.0
    with pytest.raises(TypeError, match="DistillConfig has no option lrr"):
        change(DistillConfig(), lrr=3.0)


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("kind", KINDS)
def test_every_preset_fits_the_commands_that_it_is_for(name, kind):
    if preset_values(kind, name):
        assert from_preset(kind, name).preset == name
    else:
        command = kind.__name__.removesuffix("Config").lower()
        with pytest.raises(ValueError, match=f"preset {name} has no options for {command}"):
            from_preset(kind, name)


PAPER = {  # teacher, pairs, Heun's steps, steps, batch, lr, lambda_reg: the appendix of Yin et al. (2024)
    "cifar10": ("edm-cifar10-32x32-cond-vp", 100_000, 18, 300_000, 392, 5e-5, 0.25),
    "cifar10-uncond": ("edm-cifar10-32x32-uncond-vp", 500_000, 18, 300_000, 392, 5e-5, 0.5),
    "imagenet64": ("edm-imagenet-64x64-cond-adm", 25_000, 256, 350_000, 336, 2e-6, 0.25),
}


@pytest.mark.parametrize("name", PAPER)
def test_presets_of_the_papers_models_are_the_papers(name):
    distill, pairs = (option_values(from_preset(kind, name)) for kind in (DistillConfig, PairsConfig))
    shared = ("teacher", "pair_count", "solver", "solver_steps")
    assert [distill[key] for key in shared] == [pairs[key] for key in shared]
    keys = ("teacher", "pair_count", "solver_steps", "steps", "batch", "lr", "lambda_reg")
    assert tuple(distill[key] for key in keys) == PAPER[name]
    assert (distill["solver"], distill["batch_reg"], distill["lr_fake"]) == ("heun", distill["batch"], distill["lr"])


DMD_PRESETS = ("cifar10", "cifar10-uncond", "imagenet64", "ffhq64", "afhqv2-64", "sd15-laion6", "sd15-laion6.25")


@pytest.mark.parametrize("name", ["cifar10-tiny", "cifar10-small"])
def test_presets_with_more_updates_of_the_fake_score_differ_in_nothing_else_but_length(name):
    """Before distributions are matched their generators take the very same steps."""
    plain, more = (from_preset(DistillConfig, one) for one in (name, f"{name}-5to1"))
    pairs = [from_preset(PairsConfig, one) for one in (name, f"{name}-5to1")]
    assert pairs[0] == change(pairs[1], preset=name)
    assert more.fake_score.fake_steps == 5
    assert PhaseSchedule(more).match_step == PhaseSchedule(plain).match_step
    own = ("preset", "out", "steps", "fake_steps", "match_from", "fake_from", "regress_until", "evaluate_every")
    assert more == change(plain, **{key: option_values(more)[key] for key in own})


@pytest.mark.parametrize(("name", "least", "most"), [("cifar10-tiny", 1e6, 2e6), ("cifar10-small", 10e6, 25e6)])
def test_presets_of_cifar_lead_from_images_to_a_student(name, least, most):
    """Each command finds what the one before it wrote; of the larger teacher all that travels is below 60 MB."""
    import torch

    from dmdistill.commands.teach.recipes import EDMRecipe
    from dmdistill.data.image_tensors import LabelledImages

    teach, pairs, distill = (from_preset(kind, name) for kind in (TeachConfig, PairsConfig, DistillConfig))
    assert (distill.teacher, distill.pair_set.pair_count, distill.ode) == (pairs.teacher, pairs.pair_count, pairs.ode)
    assert pairs.teacher == str(teach.out)
    with torch.device("meta"):
        data = LabelledImages(torch.zeros(1, 3, 32, 32), torch.zeros(1), tuple("abcdefghij"))
        parameters = sum(p.numel() for p in EDMRecipe(teach).new_teacher(data).network.parameters())
    assert least <= parameters <= most
    assert 4 * parameters < 58e6  # a light checkpoint; teacher and student in fp16


@pytest.mark.parametrize("name", DMD_PRESETS)
def test_presets_of_published_models_name_one_and_keep_to_the_paper(name):
    from dmdistill.models.edm_zoo import NAMES

    config = from_preset(DistillConfig, name)
    values = option_values(config)
    assert values["teacher"] in (*NAMES, "stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert from_preset(PairsConfig, name).teacher == values["teacher"]
    keys = ("warmup", "lr_decay", "grad_clip", "betas", "weight_decay", "weight", "min_t", "max_t")
    assert tuple(values[key] for key in keys) == (500, False, 10.0, (0.9, 0.999), 0.01, "eq8", 0.02, 0.98)
    check(config)
    assert config.regression.uses_lpips


@pytest.mark.parametrize(
    ("teacher", "method", "steps", "names"),
    [
        ("edm-cifar10-32x32-cond-vp", "dmd", 1, ["cifar10"]),
        ("edm-cifar10-32x32-cond-vp", "sida", 1, ["cifar10-sida"]),
        ("edm-imagenet-64x64-cond-adm", "dmd2", 1, ["imagenet64-dmd2", "imagenet64-dmd2-gan"]),
        ("stabilityai/stable-diffusion-xl-base-1.0", "dmd2", 1, ["sdxl-dmd2-1step"]),
        ("stabilityai/stable-diffusion-xl-base-1.0", "dmd2", 4, ["sdxl-dmd2-4step"]),
        ("stabilityai/stable-diffusion-xl-base-1.0", "dmd2", None, ["sdxl-dmd2-1step", "sdxl-dmd2-4step"]),
        ("edm-afhqv2-64x64-uncond-vp", "dmd2", 1, []),
        ("edm-cifar10-32x32-cond-vp", "mine:objective", 1, []),
        ("somebody/else", "dmd", 1, []),
    ],
)
def test_presets_are_recommended_for_their_teacher_method_and_steps(teacher, method, steps, names):
    assert recommended_presets(teacher, method, steps) == names


@pytest.mark.parametrize(
    ("method", "hint"),
    [
        ("sid", "made for such a teacher: --preset cifar10-sid"),
        ("dmd2", "`dmdistill presets` shows what others need"),
    ],
)
def test_a_run_without_preset_names_those_of_its_teacher_and_method(method, hint):
    from dmdistill.commands.distill.hints import describe_options

    config = from_method(DistillConfig, method, teacher="edm-cifar10-32x32-cond-vp")
    teacher: Any = SimpleNamespace(guidance=1.0, config={}, num_parameters=10**6)
    assert list(describe_options(config, teacher)) == [
        f"no preset: cautious defaults, --lr 1e-05 for 10000 steps; {hint}"
    ]


@pytest.mark.parametrize(("parameters", "hint"), [(10**6, "--preset small-network"), (10**7, "what others need")])
def test_a_small_network_has_a_preset(parameters, hint):
    from dmdistill.commands.distill.hints import describe_options

    config = DistillConfig(teacher="mine:teacher", preset="")
    teacher: Any = SimpleNamespace(guidance=1.0, config={}, num_parameters=parameters)
    (line,) = describe_options(config, teacher)
    assert line.endswith(hint)


def test_what_a_user_may_not_expect_is_said():
    from dmdistill.commands.distill.hints import describe_options

    config = from_preset(DistillConfig, "fashion", steps=20, lr=1e-3, warmup=40, ema_halflives=())
    teacher: Any = SimpleNamespace(guidance=1.0, config={"guidance": 3.0})
    assert list(describe_options(config, teacher)) == [
        "guidance 1, in place of the teacher's own 3",
        "--warmup 40 is not over after 20 steps: the learning rate reaches 0.0005 of --lr 0.001",
        "the student is the generator itself, no average of its weights: --ema-halflives is empty",
    ]


def write(folder, text):
    file = folder / "mine.toml"
    file.write_text(text)
    return str(file)


def test_an_unknown_preset_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"preset 'fashoin'; did you mean 'fashion'"):
        from_preset(DistillConfig, "fashoin")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("lamda_reg = 1", "'lamda_reg'; did you mean 'lambda_reg'"),
        ("[ode]\nsolvr = 'ddim'", "'solvr'; did you mean 'solver'"),
        ("[distill]\nqqq = 1", "'qqq'$"),
        ("[distill\n", "mine.toml"),
        ("distill = 3", "'distill'"),
        ("3", "mine.toml"),
        ("a = " + "[" * 4000, "mine.toml"),
        ("base = 'fashoin'", "fashoin"),
    ],
)
def test_faults_of_a_preset_are_named(text, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        from_preset(DistillConfig, write(tmp_path, text))


def test_a_preset_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.toml"):
        from_preset(DistillConfig, str(tmp_path / "nothing.toml"))


def test_a_preset_keeps_the_types(tmp_path):
    text = """
    lr = 1
    betas = [0, 1]
    ema_halflives = [20, 50.0]
    lambda_end = 0
    pairs = "somewhere"
    [distill]
    out = "else/where"
    guidance = 3
    """
    config = from_preset(DistillConfig, write(tmp_path, text))
    expected = change(
        DistillConfig(),
        preset=str(tmp_path / "mine.toml"),
        lr=1.0,
        betas=(0.0, 1.0),
        ema_halflives=(20.0, 50.0),
        lambda_end=0.0,
        pairs=Path("somewhere"),
        out=Path("else/where"),
        guidance=3.0,
    )
    assert typed(config) == typed(expected)


@pytest.mark.parametrize(
    "text",
    ["steps = 'many'", "steps = 2.5", "match = 3", "lr = true", "solver = 1", "betas = 0.9", "checkpointing = true"],
)
def test_a_preset_of_wrong_types_is_refused(text, tmp_path, capsys):
    with pytest.raises(ValueError, match=text.split()[0]):
        from_preset(DistillConfig, write(tmp_path, text))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[pairz]\nlr = 0.5", r"no table \[pairz\]; did you mean 'pairs'"),
        ("[distil]\nlr = 0.5", r"no table \[distil\]; did you mean 'distill'"),
        ("base = 'FILE'", "its base leads back to it"),
    ],
)
def test_a_table_of_no_command_and_a_base_without_end_are_refused(text, match, tmp_path):
    file = tmp_path / "own.toml"
    file.write_text(text.replace("FILE", str(file)))
    with pytest.raises(ValueError, match=match):
        from_preset(DistillConfig, str(file))


def test_a_file_of_another_kind_is_no_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("lr: 0.5")
    with pytest.raises(ValueError, match=r"own.yaml is no preset: a preset is a .toml file"):
        from_preset(DistillConfig, "own.yaml")


def test_a_preset_builds_on_its_base(tmp_path):
    """Its own options come before the base's, tables before what they share."""
    text = "base = 'cifar10'\nlr = 7e-7\n[pairs]\npair_count = 3\n"
    config = from_preset(DistillConfig, write(tmp_path, text))
    base = from_preset(DistillConfig, "cifar10")
    assert config == change(base, preset=config.preset, lr=7e-7)
    assert from_preset(PairsConfig, config.preset).pair_count == 3


def test_a_preset_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "mine.toml").write_bytes(b"\xef\xbb\xbfsteps = 3")
    assert from_preset(DistillConfig, str(tmp_path / "mine.toml")).steps == 3


def test_flags_come_before_the_preset_and_the_preset_before_the_defaults(tmp_path):
    file = write(tmp_path, "steps = 3\nbatch = 5\nsolver_steps = 9\n[teach]\nsteps = 4")
    for preset in (["--preset", file], [f"--preset={file}"]):
        name, config = parse(["distill", *preset, "--steps", "7", "--ema-halflives", "3", "--guidance", "2"])
        expected = change(
            DistillConfig(), preset=file, steps=7, batch=5, ema_halflives=(3.0,), solver_steps=9, guidance=2.0
        )
        assert (name, config) == ("distill", expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bundled_teacher_has_its_own_preset_and_another_one_none(kind):
    name = next(name for name, command in COMMANDS.items() if command.config is kind)
    assert parse([name]) == (name, from_preset(kind, "fashion"))
    flag, value = ("--data", "elsewhere") if kind is TeachConfig else ("--teacher", "mine")
    option = "data" if kind is TeachConfig else "teacher"
    changed = change(kind(), **{option: Path(value) if option == "data" else value})
    assert parse([name, flag, value]) == (name, changed)


@pytest.mark.parametrize("command", ["distill", "plan"])
@pytest.mark.parametrize(
    ("flags", "preset"),
    [
        ("--method dmd", "fashion"),
        ("--method dmd2", "fashion-dmd2"),
        ("--method dmd2 --student-steps 2", "fashion-dmd2-2step"),
        ("--method dmd2 --student-steps 4", "fashion-dmd2-4step"),
        ("--method dmd2 --student-timesteps 80 2.5", "fashion-dmd2-2step"),
        ("--method dmd2 --student-steps 3", "fashion-dmd2"),
        ("--method f-distill --data images", "fashion-f-distill"),
        ("--method f-distill --student-steps 2 --data images", "fashion-f-distill"),
        ("--method sid", "fashion-sid"),
        ("--method sida --data images", "fashion-sida"),
        ("--method decoupled-dmd", "fashion-decoupled-dmd"),
        ("--method mine:objective", ""),
        ("--teacher mine --method dmd2", ""),
        ("--preset fashion-dmd --method dmd", "fashion-dmd"),
    ],
)
def test_each_method_has_its_preset_for_the_bundled_teacher(command, flags, preset):
    name, config = parse([command, *flags.split()])
    kind = COMMANDS[command].config
    assert (name, config.preset) == (command, preset)
    if preset:
        given = {"student_steps": config.student.student_steps, "student_timesteps": config.student.student_timesteps}
        assert config == change(from_preset(kind, preset), data=config.gan.data, **given)
        check(config)
    else:
        assert config.optimizer.lr == kind().optimizer.lr


def test_resume_takes_the_runs_options_and_the_flags_over_them(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    before = change(
        DistillConfig(),
        out=Path("elsewhere"),
        steps=33,
        lambda_end=0.1,
        solver="ddim",
        pairs=Path("p"),
        preset="cifar10",
    )
    write_config(before, run / "config.toml")
    expected = change(before, out=run, resume=run)
    assert parse(["distill", "--resume", str(run)]) == ("distill", expected)
    assert parse(["distill", f"--resume={run}", "--steps", "44"]) == ("distill", change(expected, steps=44))
    with pytest.raises(ValueError, match=r"config\.toml"):
        parse(["teach", "--resume", str(run)])
    with pytest.raises(ValueError, match=r"nowhere/config\.toml"):
        parse(["distill", "--resume", str(tmp_path / "nowhere")])


def test_a_changed_digit_of_a_runs_options_is_detected(tmp_path, capsys):
    file = tmp_path / "config.toml"
    write_config(change(DistillConfig(), lr=2e-4, seed=3), file)
    text = file.read_text()
    for old, new in (("seed = 3", "seed = 4"), ("lr = 0.0002", "lr = 0.0003"), ('crc32 = "', 'crc33 = "')):
        file.write_text(text.replace(old, new, 1))
        with pytest.raises(ValueError, match=r"config\.toml is damaged"):
            from_run(DistillConfig, tmp_path)
    assert capsys.readouterr().err == ""
    file.write_text(text.split("\n", 1)[1])  # as an earlier version wrote it
    assert from_run(DistillConfig, tmp_path).seed == 3
    assert capsys.readouterr().err.startswith(f"dmdistill: {file} is not verified")


@pytest.mark.parametrize("name", [*COMMANDS, "options"])
def test_every_option_says_what_it_is(name):
    """A field's help is the string below it; one without has none. Groups are described by their class."""
    module = importlib.import_module(
        COMMANDS[name].config.__module__ if name in COMMANDS else f"dmdistill.commands.{name}"
    )
    for node in ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            for field, text in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign) and "OmitArgPrefixes" not in ast.unparse(field.annotation):
                    assert isinstance(text, ast.Expr), field.target.id
                    assert text.value.value.rstrip("\n ").endswith(".")


def options_of_type(config, kind):
    """The names of the options with numbers of a type."""
    values = option_values(config).items()
    return [
        name for name, value in values if kind in {type(v) for v in (value if isinstance(value, tuple) else [value])}
    ]


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_no_option_is_nan_or_infinite(kind, odd):
    for name in [*options_of_type(kind(), float), *(["guidance"] if kind is not TeachConfig else [])]:
        several = isinstance(option_values(kind())[name], tuple)
        with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} .*finite"):
            check(change(kind(), **{name: (odd, odd) if several else odd}))


@pytest.mark.parametrize("kind", KINDS)
def test_every_seed_is_one_that_generators_take(kind):
    for seed in (-1, 2**63):
        with pytest.raises(ValueError, match=f"--seed {seed}"):
            check(change(kind(), seed=seed))


@pytest.mark.parametrize("method", ["dmd", "dmd2", "sid", "decoupled-dmd"])
def test_a_preset_can_be_started_from_with_another_method(method):
    """What the preset sets for its own method alone is left out, as the other method refuses it."""
    for name in ("cifar10-tiny", "sd15-laion6", "cifar10-fdistill", "cifar10-sid"):
        config = from_preset(DistillConfig, name, method=method, guidance=2.0)
        check(config)
        assert (config.regression.lambda_reg > 0) == (method == "dmd")
    assert from_preset(DistillConfig, "cifar10-tiny", method=method).fake_score.fake_steps == 2


@pytest.mark.parametrize(("precision", "rounds"), [("bf16", True), ("fp32", False)])
def test_nothing_is_rounded_to_tf32_where_fp32_is_asked_for(precision, rounds):
    """Neither products nor convolutions, which PyTorch rounds by default; whatever was computed before."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    setup_compute(ComputeOptions(device="cpu", precision=precision))
    now = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before[1:]
    assert now == ("high" if rounds else "highest", rounds)


def own_objective(generator, real, fake):
    raise AssertionError


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"out": "runs/x"}, "--out 'runs/x', expected Path"),
        ({"steps": "a"}, "--steps 'a', expected int"),
        ({"steps": True}, "--steps True, expected int"),
        ({"lr": None}, "--lr None, expected float"),
        ({"ema_halflives": [3.0]}, r"--ema-halflives \[3.0\], expected tuple\[float"),
        ({"ema_halflives": ("3",)}, r"--ema-halflives \('3',\), expected tuple\[float"),
        ({"strategy": "dp"}, "--strategy 'dp', expected Literal"),
        ({"method": own_objective}, "--method <function .*: give its name, such as '__main__:own_objective'"),
    ],
)
def test_a_value_of_another_type_is_named(values, match):
    """As it can come from Python; flags are parsed to their types."""
    with pytest.raises(ValueError, match=match):
        check(change(DistillConfig(), **values))
    check(change(DistillConfig(), lr=1, ema_halflives=(1, 2.5)))
