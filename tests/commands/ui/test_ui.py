"""`dmdistill ui` without a browser: what is generated, what is said of a run, and 200 requests at once."""

from __future__ import annotations

import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dmdistill.commands.ui.config import UiConfig
from dmdistill.commands.ui.model_page import respond
from dmdistill.commands.ui.models import load_pair
from dmdistill.commands.ui.run_view import FRAMES, RunView
from dmdistill.commands.ui.server import listen
from dmdistill.core.solvers import SOLVERS
from helpers.configs import CPU
from helpers.pages import served, write_run
from helpers.tiny_models import save_student


@pytest.fixture(scope="module")
def student_folder(tiny_teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ui") / "student"
    save_student(str(tiny_teacher), folder)
    return folder


@pytest.fixture(scope="module")
def pair(student_folder):
    pair = load_pair(UiConfig(str(student_folder), compute=CPU))
    return replace(pair, teacher=replace(pair.teacher, steps=4))


def test_both_models_generate_what_a_call_does(pair):
    inputs = pair.draw(3, count=5, seed=7)
    for result, model in (
        (pair.generate_student(inputs, steps=1), pair.student),
        (pair.generate_teacher(inputs), pair.teacher),
    ):
        assert torch.equal(result.images, model(labels=3, count=5, seed=7))
        assert result.evaluations == model.evaluations
        assert result.seconds > 0


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_path_leads_from_noise_to_the_image(pair, solver):
    """At its least noise what the solver has, x_t, is next to the image; at most noise it is z."""
    pair = replace(pair, teacher=replace(pair.teacher, solver=solver, steps=5))
    inputs = pair.draw(None, count=2, seed=0)
    result = pair.generate_teacher(inputs, columns=4)
    x_t, mu = result.path.chunk(2)
    assert len(x_t) == len(mu) == 4  # three of the times, and the end
    torch.testing.assert_close(x_t[0], inputs[0][0][0], atol=0.01, rtol=0.01)
    assert torch.equal(x_t[-1], result.images[0])
    assert torch.equal(mu[-1], result.images[0])
    short = pair.generate_teacher(inputs, columns=9).path
    assert len(short) == 2 * 6  # a solver of five steps has no more


def test_few_steps_are_the_first_of_the_student(pair):
    student = replace(pair.student, timesteps=(80.0, 10.0, 1.0))
    few = replace(pair, student=student)
    inputs = few.draw(1, count=2, seed=0)
    assert torch.equal(few.generate_student(inputs, steps=3).images, student(labels=1, count=2))
    two = few.generate_student(inputs, steps=2)
    assert two.evaluations == 2
    assert torch.equal(two.images, replace(student, timesteps=(80.0, 10.0))(labels=1, count=2))


def test_the_student_is_shown_before_the_teacher_is_done(pair):
    first, second = respond(pair, -1, 0, count=5, steps=1)
    assert first[0].startswith("**Student**: 5 images in ")
    assert first[3] is None
    assert second[:2] == first[:2]
    assert "7 evaluations per image" in second[2]
    assert "times as long" in second[2]
    assert second[3].size[0] > 400  # 8 pixels of an image, magnified


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"condition": 10}, "no class 10"),
        ({"condition": "a cat"}, "it takes no prompts"),
        ({"seed": -1}, "seed -1, expected 0 to"),
        ({"count": 0}, "0 images, expected at least 1"),
        ({"steps": 0}, "0 steps, expected 1 to 1"),
        ({"steps": 2}, "2 steps, expected 1 to 1"),
    ],
)
def test_what_the_models_cannot_have_is_refused(pair, asked, match):
    asked = {"condition": 0, "seed": 0, "count": 1, "steps": 1} | asked
    with pytest.raises(ValueError, match=match):
        next(respond(pair, **asked))


def test_a_prompt_is_encoded_for_both(tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setenv("DMDISTILL_CACHE", str(tmp_path / "cache"))
    name = str(tiny_pipeline("stable_diffusion"))
    save_student(name, tmp_path / "text")
    pair = load_pair(UiConfig(str(tmp_path / "text"), teacher=name, compute=CPU))
    pair = replace(pair, teacher=replace(pair.teacher, steps=2))
    *_, (*_, path) = respond(pair, "a red square", 0, count=2, steps=1)
    assert path.mode == "RGB"
    with pytest.raises(ValueError, match="a prompt without words"):
        next(respond(pair, " ", 0, count=1, steps=1))


def test_a_run_is_described(tmp_path):
    view = RunView(write_run(tmp_path / "run"))
    status = view.status()
    assert status.progress == "step 3 of 100 after 0.1 min; left: 0:03:14 of training, without pairs and report"
    assert status.verdict.startswith("too early to tell")
    assert status.rows["loss_reg"] == "0.3333"
    assert view.curves().width > 1000


def test_the_film_has_the_grids_in_their_order(tmp_path):
    view = RunView(write_run(tmp_path / "run"))
    with Image.open(view.film()) as film:
        assert (film.n_frames, film.size) == (2, (232, 464))
        assert [frame_grey(film, number) for number in range(2)] == [5, 10]
    long = RunView(write_run(tmp_path / "long", grids=FRAMES + 7))
    with Image.open(long.film()) as film:
        assert film.n_frames == FRAMES
        assert [frame_grey(film, number) for number in (0, FRAMES - 1)] == [5, 5 * (FRAMES + 7)]


def frame_grey(film, number):
    film.seek(number)
    return film.convert("L").getpixel((0, 0))


def test_a_run_is_looked_at_again_when_it_writes(tmp_path):
    run = write_run(tmp_path / "run")
    view = RunView(run)
    before = view.version()
    assert view.version() == before
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 100, "seconds": 200.0}\n')
    assert view.version() != before
    assert view.status().progress == "step 100 of 100 after 3.3 min; all steps are done"


def test_a_run_without_rows_and_one_that_is_damaged(tmp_path):
    empty = RunView(write_run(tmp_path / "empty", steps=0, grids=0))
    assert empty.status().progress == "no step is logged yet"
    assert (empty.curves(), empty.film(), empty.grids()) == (None, None, [])
    damaged = RunView(write_run(tmp_path / "damaged"))
    (tmp_path / "damaged" / "metrics.jsonl").write_text("{\n")
    assert "line 1, is damaged" in damaged.status().verdict
    assert damaged.curves() is None


def test_an_address_that_is_taken_or_strange(error_line):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        line = error_line("ui", "--port", port)
    assert (
        f"--host 127.0.0.1 --port {port}: Address already in use: expected an address of this machine and a port"
        in line
    )
    assert "--host nowhere.invalid --port 7860: " in error_line("ui", "--host", "nowhere.invalid")
    assert "--port 70000, expected from 0 to 65535" in error_line("ui", "--port", "70000")


def test_without_gradio_it_is_said_how_to_install_it(error_line, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    assert "dmdistill ui needs gradio" in (line := error_line("ui", "--port", "0"))
    assert line.endswith("pip install 'dmdistill[ui]'\n")


def test_an_unknown_model_is_named(error_line):
    pytest.importorskip("gradio")
    assert "unknown model 'fashon-student'" in error_line("ui", "fashon-student", "--port", "0")


def test_the_page_listens_on_this_machine_only():
    assert UiConfig().host == "127.0.0.1"
    with listen(UiConfig().host, 0) as listening:
        assert listening.family == socket.AF_INET
        assert listening.getsockname()[0] == "127.0.0.1"


@pytest.mark.slow
def test_200_requests_at_once_are_all_answered(student_folder):
    """Each with the images of its own seed; and Ctrl-C ends the command with its code."""
    client = pytest.importorskip("gradio_client")
    with served(student_folder) as (address, process):
        page = client.Client(address, verbose=False, analytics_enabled=False)
        with ThreadPoolExecutor(200) as pool:
            ask = lambda seed: page.predict(-1, seed % 100, 1, 1, api_name="/generate")  # noqa: E731
            answers = list(pool.map(ask, range(200)))
        images = [np.asarray(Image.open(answer[1])).tobytes() for answer in answers]
        assert images[:100] == images[100:]
        assert len(set(images)) == 100
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == "dmdistill: interrupted\n"
