"""Runs for `dmdistill ui` to show, and its pages: served by a process of their own, and opened in headless Chromium."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ONLY_THIS_MACHINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"


@contextmanager
def served(*arguments: object) -> Iterator[tuple[str, subprocess.Popen]]:
    """Yield the address of a page at a free port, and its process, which Ctrl-C ends afterwards."""
    command = [sys.executable, "-m", "dmdistill", "ui", *map(str, arguments), "--port", "0", "--threads", "1"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a job in the background ignores
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            match = re.match(r"http://[\d.]+:\d+", line)
            assert match, line + (process.stderr.read() if process.stderr else "")
            yield match[0], process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait(60)


@contextmanager
def browser(*, width: int = 1280, height: int = 1200) -> Iterator[Any]:
    """Yield headless Chromium, without network, by selenium."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", ONLY_THIS_MACHINE):
        options.add_argument(flag)
    options.add_argument(f"--window-size={width},{height}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def screenshot(driver: Any, name: str) -> None:
    """Write a picture of the page to $DMDISTILL_SCREENSHOTS, where that is set, in 64 colours."""
    if folder := os.environ.get("DMDISTILL_SCREENSHOTS"):
        file = Path(folder) / f"{name}.png"
        driver.save_screenshot(str(file))
        with Image.open(file) as image:
            image.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(file, optimize=True)


def write_run(folder: Path, steps: int = 3, grids: int = 2) -> Path:
    """A run of 100 steps, of which so many are done, with sample grids of more and more brightness."""
    (folder / "samples").mkdir(parents=True)
    (folder / "config.toml").write_text("steps = 100\n")
    rows = [{"step": step, "seconds": 2.0 * step, "loss_reg": 1 / step} for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in range(1, grids + 1):
        Image.fromarray(np.full((1000, 500), 5 * step, np.uint8)).save(folder / "samples" / f"step-{step:06d}.png")
    return folder
