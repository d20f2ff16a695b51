"""Speed: interleaved rounds, the best batch, ratios within one run, and refusals."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from dmdistill.commands.bench import command as benching
from dmdistill.commands.bench.command import load_models, make_table
from dmdistill.commands.bench.compare import BenchmarkCase, compare, compile_case, peak_memory
from dmdistill.commands.bench.config import BenchConfig
from dmdistill.commands.bench.timers import Spread, device_clock, find_best_batch, time_in_rounds
from dmdistill.commands.cli import main
from dmdistill.commands.options import SolverOptions as Ode
from dmdistill.io.atomic import read_json
from dmdistill.models.load import load_teacher
from dmdistill.models.model import Student, Teacher
from helpers.edits import edit_json
from helpers.slow_models import slow
from helpers.tiny_models import save_student

QUICK = ["--repeats", "1", "--max-batch", "2", "--device", "cpu", "--threads", "1"]
SHAPE = (3, 4, 6)


class FakeTime:
    """A clock that only work moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, *seconds: float):
        """Return a workload that takes these seconds in turn, then always the last."""
        left = list(seconds)

        def run() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def search(seconds, max_batch=1024):
    """best_batch, where a batch takes seconds(batch)."""
    clock = FakeTime()
    return find_best_batch(lambda batch: clock.work(seconds(batch)), clock, max_batch=max_batch)


def test_the_best_batch_is_where_time_per_image_is_least():
    best, tried = search(lambda batch: 3 + batch + batch**2 / 100)
    assert best == 16  # the least of 3/b + 1 + b/100 is at the root of 300
    assert tried == pytest.approx({b: 3 / b + 1 + b / 100 for b in (1, 2, 4, 8, 16, 32, 64)})


def test_one_bad_batch_does_not_end_the_search_and_two_do():
    def bumpy(batch):
        return batch * {1: 1.0, 2: 1.5, 4: 0.9, 8: 0.95, 16: 0.89}.get(batch, 0.1)

    best, tried = search(bumpy)
    assert (best, list(tried)) == (4, [1, 2, 4, 8, 16])  # 16 gains too little over 4; 32 is not tried


@pytest.mark.parametrize("max_batch", [1, 2, 7, 8])
def test_no_batch_above_the_largest_is_tried(max_batch):
    best, tried = search(lambda batch: 1.0, max_batch=max_batch)
    assert best == max(tried) == 2 ** int(math.log2(max_batch))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_the_search_ends_where_memory_does(error):
    def seconds(batch):
        if batch > 4:
            raise error
        return 1.0

    assert search(seconds) == (4, {1: 1.0, 2: 0.5, 4: 0.25})
    with pytest.raises(type(error)):
        search(lambda batch: seconds(8))


def test_other_errors_are_not_taken_for_running_out_of_memory():
    def seconds(batch):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        search(seconds)


def test_rounds_take_turns_and_leave_out_the_cold_call():
    clock, calls = FakeTime(), []

    def work(name, *seconds):
        run = clock.work(*seconds)
        return lambda: (calls.append(name), run())

    works = {
        "slow": work("slow", 90, 10, 10, 30, 20),
        "quick": work("quick", 50, 0.05, 0.05, 0.07, 0.02, 0.03, 0.04, 0.05),
    }
    timed = time_in_rounds(works, clock, repeats=3, name="timing")
    assert timed["slow"] == Spread(20, 15, 25)  # of 10, 30, 20
    assert timed["quick"].median == pytest.approx(0.045)  # of the medians of 0.05 0.07, 0.02 0.03, 0.04 0.05
    warm, rounds = calls[:4], calls[4:]
    assert warm == ["slow", "slow", "quick", "quick"]
    assert rounds == ["slow", "quick", "quick"] * 3  # two short calls make up the 0.1 s of a turn


def test_the_spread_of_one_round_is_a_point():
    assert Spread.from_timings([2.0]) == Spread(2, 2, 2)
    assert Spread.from_timings([1.0, 2.0, 3.0, 4.0, 9.0]) == Spread(3, 2, 4)


def test_every_number_of_a_comparison_on_a_fake_clock():
    clock = FakeTime()
    pair = [BenchmarkCase(slow(Teacher, clock, steps=4)), BenchmarkCase(slow(Student, clock))]
    report = compare(pair, clock, repeats=2, max_batch=8)
    assert report["tried"]["student"] == pytest.approx({b: (11.1 + b) / b for b in (1, 2, 4, 8)})
    for row, evaluations in zip(report["rows"], (7, 1, 7, 1), strict=True):  # Heun's four steps ask seven times
        batch = {"latency": 1, "throughput": 8}[row["measure"]]
        assert (row["batch"], row["evaluations_per_image"], row["memory_bytes"]) == (batch, evaluations, None)
        assert row["seconds"]["median"] == pytest.approx(evaluations * (11.1 + batch))
        assert row["seconds"]["low"] == pytest.approx(row["seconds"]["high"])
        assert row["images_per_second"] == pytest.approx(batch / (evaluations * (11.1 + batch)))
        assert row["speedup"] == pytest.approx(7 / evaluations)


def test_a_few_step_student_is_timed_with_all_its_steps():
    clock = FakeTime()
    few = dataclasses.replace(slow(Student, clock), timesteps=(1.0, 0.8, 0.3), transition="ode")
    for row in compare([BenchmarkCase(slow(Student, clock)), BenchmarkCase(few)], clock, repeats=1, max_batch=1)[
        "rows"
    ]:
        assert row["seconds"]["median"] == pytest.approx(row["evaluations_per_image"] * 12.1)
    assert (row["evaluations_per_image"], row["speedup"]) == (3, pytest.approx(1 / 3))


def test_the_clock_waits_for_a_gpu(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    device_clock(torch.device("cpu"))()
    assert waited == []
    device_clock(torch.device("cuda:1"))()
    assert waited == [torch.device("cuda:1")]


def test_memory_is_of_the_model_and_its_workload_only(monkeypatch):
    """On a GPU where 100 bytes are taken by others, and the work takes 30 more for a moment."""
    student = slow(Student, FakeTime())
    assert peak_memory(student, lambda: None) is None
    taken = {"now": 100, "most": 999}

    def work():
        taken["most"] = max(taken["most"], taken["now"] + 30)

    monkeypatch.setattr(Student, "device", property(lambda _: torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: taken.update(most=taken["now"]))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: taken["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: taken["most"])
    assert peak_memory(student, work) == 4 + 30  # the network is one number in fp32


def test_a_compiled_model_shares_its_weights_and_leaves_the_eager_one_alone(monkeypatch):
    class Compiled(nn.Module):
        def __init__(self, network, **settings):
            super().__init__()
            assert settings == {"dynamic": False}  # else batch 1 and the others would be one open shape
            self.network, self.clock = network, network.clock

        def forward(self, *arguments):
            self.network.clock.now -= 4
            return self.network(*arguments)

    clock = FakeTime()
    student = slow(Student, clock)
    monkeypatch.setattr(torch, "compile", Compiled)
    network = student.network
    twin = compile_case(student)
    assert student.network is network
    assert next(twin.model.network.parameters()) is network.scale
    rows = compare([BenchmarkCase(student), twin], clock, repeats=1, max_batch=1)["rows"]
    assert [row["mode"] for row in rows] == ["eager", "compiled"] * 2
    assert [row["speedup"] for row in rows] == pytest.approx([1, 12.1 / 8.1] * 2)


def test_a_compiler_that_is_missing_is_one_line(tiny_teacher, error_line, monkeypatch):
    def failing(network, **_):
        def call(*arguments):
            raise RuntimeError(
                "InvalidCxxCompiler: No working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1 for more"
            )

        network.forward = call
        return network

    monkeypatch.setattr(torch, "compile", failing)
    line = error_line("bench", tiny_teacher, "--compile", *QUICK)
    assert line.strip().endswith("torch.compile fails on tiny: InvalidCxxCompiler: No working C++ compiler found")


@pytest.mark.slow
def test_torch_compiles_the_bundled_student(tmp_path):
    main(["bench", "fashion-student", "--compile", "--json", str(tmp_path / "x.json"), *QUICK])
    rows = read_json(tmp_path / "x.json")["rows"]
    assert [(row["kind"], row["mode"]) for row in rows] == 2 * [
        (kind, way) for way in ("eager", "compiled") for kind in ("teacher", "student")
    ]


@pytest.fixture
def student(tiny_teacher, tmp_path):
    """Save a student of the tiny teacher, whose pairs took two steps."""
    folder = tmp_path / "student"
    save_student(str(tiny_teacher), folder)
    distilled = read_json(folder / "config.json")["distilled"]
    edit_json(folder / "config.json", distilled=distilled | {"solver": "ddim", "solver_steps": 2, "guidance": 3.0})
    return folder


def test_the_command_writes_what_it_returns_and_prints(student, tmp_path, capsys):
    main(["bench", str(student), "--json", str(tmp_path / "x.json"), *QUICK])
    report = read_json(tmp_path / "x.json")
    assert [(row["measure"], row["kind"], row["batch"]) for row in report["rows"][:2]] == [
        ("latency", "teacher", 1),
        ("latency", "student", 1),
    ]
    for measure in ("latency", "throughput"):
        first, *others = [row for row in report["rows"] if row["measure"] == measure]
        assert first["speedup"] == 1
        for row in [first, *others]:  # all ratios are those of the medians
            assert row["images_per_second"] == row["batch"] / row["seconds"]["median"]
            assert row["speedup"] == pytest.approx(row["images_per_second"] / first["images_per_second"])
            assert row["seconds"]["low"] <= row["seconds"]["median"] <= row["seconds"]["high"]
    printed = capsys.readouterr().out
    assert "tiny-student" in printed
    assert f"{report['rows'][1]['speedup']:.2f}" in printed


def test_the_teacher_is_sampled_as_for_the_pairs_by_default(student, tiny_teacher):
    teacher, one = load_models(BenchConfig(str(student)))
    assert isinstance(teacher, Teacher)
    assert (teacher.name, teacher.solver, teacher.steps, teacher.guidance) == ("tiny", "ddim", 2, 3.0)
    assert (one.name, one.evaluations) == ("tiny-student", 1)
    teacher, _ = load_models(BenchConfig(str(student), ode=Ode(solver_steps=5)))
    assert isinstance(teacher, Teacher)
    assert (teacher.solver, teacher.steps, teacher.evaluations) == ("ddim", 5, 10)
    (single,) = load_models(BenchConfig(str(tiny_teacher)))
    assert (single.name, single.evaluations) == ("tiny", load_teacher(str(tiny_teacher)).evaluations)


def test_impossible_settings_are_refused(student, tiny_teacher, error_line):
    assert "--repeats 0" in error_line("bench", student, "--repeats", 0)
    assert "--max-batch 0" in error_line("bench", student, "--max-batch", 0)
    assert f"--repeats {10**23}" in error_line("bench", student, "--repeats", 10**23)
    assert "unknown model 'tyni'" in error_line("bench", "tyni")
    assert "expected a student" in error_line("bench", tiny_teacher, "--teacher", tiny_teacher)
    assert "is a student, expected a teacher" in error_line("bench", student, "--teacher", student)
    assert "makes (1, 28, 28), tiny-student (1, 8, 8): not its teacher" in error_line(
        "bench", student, "--teacher", "fashion"
    )
    edit_json(student / "config.json", distilled={"teacher": "gone"})
    assert "cannot be loaded, give --teacher: unknown model 'gone'" in error_line("bench", student)
    edit_json(student / "config.json", distilled=None)
    assert "does not name its teacher: give --teacher" in error_line("bench", student)
    for odd in ({"solver": "eluer"}, {"solver": 1}, {"solver_steps": "many"}, {"solver_steps": 0}, {"guidance": [3]}):
        edit_json(student / "config.json", distilled={"teacher": str(tiny_teacher), **odd})
        line = error_line("bench", student)
        assert str(next(iter(odd.values()))) in line
    edit_json(student / "config.json", distilled=None)
    assert len(load_models(BenchConfig(str(student), teacher=str(tiny_teacher)))) == 2


def test_the_table_has_one_unit_a_column(monkeypatch):
    """Latency in ms, throughput in images/s, ratios and memory in GB, each in a column of its own."""
    monkeypatch.setattr("dmdistill.commands.bench.compare.peak_memory", lambda model, work: 2_500_000_000)
    clock = FakeTime()
    teacher = dataclasses.replace(slow(Teacher, clock, steps=4), name="[bold]teacher")
    result = compare([BenchmarkCase(teacher), BenchmarkCase(slow(Student, clock))], clock, repeats=2, max_batch=8)
    table = make_table({"hardware": "a device", **result})
    columns = {column.header: list(column.cells) for column in table.columns}
    assert columns == {
        "model": ["\\[bold]teacher", "Student"] * 2,
        "evaluations": ["7", "1"] * 2,
        "batch": ["1", "1", "8", "8"],
        "latency, ms": [f"{1e3 * n * (11.1 + b):.4g} ± 0%" for b in (1, 8) for n in (7, 1)],
        "images/s": [f"{b / (n * (11.1 + b)):.4g}" for b in (1, 8) for n in (7, 1)],
        "speed-up": ["1.00", "7.00"] * 2,
        "memory, GB": ["2.50"] * 4,
    }


def test_a_pipeline_gets_a_prompt_and_decodes(tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path / "cache"))
    folder = tiny_pipeline("stable_diffusion")
    save_student(str(folder), tmp_path / "student")
    cases = []

    def recorded(models, *rest, **options):
        cases.extend(models)
        return compare(models, *rest, **options)

    monkeypatch.setattr(benching, "compare", recorded)
    main(["bench", str(tmp_path / "student"), "--solver-steps", "2", "--guidance", "2", *QUICK])
    assert [str(one.model.conditions).split()[0] for one in cases] == ["1", "1"]
    images = cases[1].workload(2)()
    assert images.shape == (2, 3, 16, 16)
