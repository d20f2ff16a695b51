"""Pages of `dmdistill ui`: served by a process of their own, and opened in headless Chromium."""

from __future__ import annotations

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

ONLY_THIS_MACHINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"


@contextmanager
def served(*arguments: object) -> Iterator[tuple[str, subprocess.Popen]]:
    """Yield the address of a page at a free port, and its process, which Ctrl-C ends afterwards."""
    command = [sys.executable, "-m", "dmdistill", "ui", *map(str, arguments), "--port", "0", "--threads", "1"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
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
                process.wait(20)


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
        from PIL import Image

        file = Path(folder) / f"{name}.png"
        driver.save_screenshot(str(file))
        with Image.open(file) as image:
            image.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(file, optimize=True)
