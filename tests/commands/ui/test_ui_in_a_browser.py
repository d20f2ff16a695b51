"""`dmdistill ui` in headless Chromium, without network: what is clicked, and what is seen then.

DMDISTILL_SCREENSHOTS=FOLDER writes ui-model.png and ui-run.png there; DMDISTILL_RUN=RUN shows that run on the second.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import urllib.request
from pathlib import Path

import pytest

from helpers.pages import browser, screenshot, served, write_run

pytest.importorskip("gradio")
pytest.importorskip("selenium")
pytestmark = [
    pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed")
    for name in ("chromium", "chromedriver")
]
SECONDS = 60  # that a page has for anything


@pytest.fixture(scope="module")
def driver():
    with browser() as driver:
        yield driver


def wait(condition):
    """Wait for a condition, and return what it gives."""
    end = time.monotonic() + SECONDS
    while not (value := condition()):
        assert time.monotonic() < end, "the page does not come to this"
        time.sleep(0.05)
    return value


def read(driver, selector, attribute):
    """An attribute of an element, "" while there is none: in one call, as the page may replace it at any time."""
    return driver.execute_script(
        "return document.querySelector(arguments[0])?.[arguments[1]] ?? ''", selector, attribute
    )


def picture(driver, name):
    """The address of a picture, "" while there is none."""
    return read(driver, f"#{name} img", "src")


def milliseconds(driver, model):
    found = re.search(r"images? in (\d+) ms", read(driver, f"#{model}-time", "innerText"))
    return int(found[1]) if found else None


def generated(driver, before=None):
    """Wait until both models have generated, other images than before; return the bytes of their pictures."""

    def both():
        files = [picture(driver, f"{model}-images") for model in ("student", "teacher")]
        return files if all(files) and milliseconds(driver, "teacher") is not None and files != before else None

    files = wait(both)
    assert milliseconds(driver, "student") < milliseconds(driver, "teacher")
    return files, [urllib.request.urlopen(file).read() for file in files]


def addresses(driver):
    """All that the browser asked the network for."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"]


def set_seed(driver, seed):
    field = driver.find_element("css selector", "#seed input")
    driver.execute_script("arguments[0].select()", field)
    field.send_keys(str(seed))


def test_a_student_beside_its_teacher(driver):
    with served("fashion-student") as (address, _):
        driver.get(address)
        files, first = generated(driver)
        assert first[0][:4] == first[1][:4] == b"\x89PNG"
        assert picture(driver, "path")
        screenshot(driver, "ui-model")
        driver.find_element("css selector", "#next-seed").click()
        files, second = generated(driver, before=files)
        assert all(one != other for one, other in zip(first, second, strict=True))
        set_seed(driver, 0)
        _, again = generated(driver, before=files)
        assert again == first
        asked = addresses(driver)
        assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


@pytest.fixture
def run(tmp_path):
    """$DMDISTILL_RUN, or the folder of a run that has done 3 of 100 steps."""
    folder = os.environ.get("DMDISTILL_RUN")
    return Path(folder) if folder else write_run(tmp_path / "run")


def test_a_run_that_trains(driver, run):
    with served(run) as (address, _):
        driver.get(address)
        field = wait(lambda: driver.find_elements("css selector", "#progress textarea, #progress input"))[0]
        progress = wait(lambda: field.get_property("value"))
        assert re.match(r"step \d+ of \d+ after [\d.]+ min; left: \d+:\d\d:\d\d of training", progress)
        verdict = driver.find_element("css selector", "#verdict textarea")
        assert re.match("healthy so far: |too early to tell: |unhealthy: ", verdict.get_property("value"))
        for name in ("curves", "film", "grid"):
            assert wait(lambda name=name: picture(driver, name))
        film = urllib.request.urlopen(picture(driver, "film")).read()
        assert film.startswith(b"GIF8")
        time.sleep(1)  # for the slider's own layout
        screenshot(driver, "ui-run")
        last = picture(driver, "grid")
        number = driver.find_element("css selector", "#frame input[type=number]")
        driver.execute_script("arguments[0].select()", number)
        number.send_keys("1")
        assert wait(lambda: picture(driver, "grid") != last)
