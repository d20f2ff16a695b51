"""The web server of the page, by default for this machine only."""

from __future__ import annotations

import socket
from typing import Any

from dmdistill.commands.ui.packages import load_package
from dmdistill.io.console import say
from dmdistill.io.errors import first_line

__all__ = ["listen", "make_app", "serve"]

CSS = """
.pixels img { image-rendering: pixelated; }
.rows td { padding: 0.2em 1em 0.2em 0; vertical-align: top; border: none; }
"""
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # gradio's own are Google's
SECONDS_TO_CLOSE = 1  # that open pages have when the command ends


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address. ValueError, naming the flags, where that cannot be."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        reason = first_line(error).removeprefix(f"[Errno {error.errno}] ").partition(" (while")[0]
        expected = "expected an address of this machine and a port that is free, --port 0 chooses one"
        raise ValueError(f"--host {host} --port {port}: {reason}: {expected}") from None


def make_app(page: Any) -> Any:
    """Return a page as an application of FastAPI: without gradio's links, fonts and history of inputs."""
    gr, fastapi = load_package("gradio"), load_package("fastapi")
    page.queue(max_size=None, default_concurrency_limit=1)
    theme = gr.themes.Default(**FONTS)
    return gr.mount_gradio_app(
        fastapi.FastAPI(), page, path="/", theme=theme, css=CSS, footer_links=[], run_history=False, max_file_size=0
    )


def serve(page: Any, listening: socket.socket) -> None:
    """Serve a page at a socket until Ctrl-C, which raises KeyboardInterrupt once the socket is closed."""
    uvicorn = load_package("uvicorn")
    # "critical": gradio prints the errors of requests itself, and that pages were open at the end is none
    settings = uvicorn.Config(make_app(page), log_level="critical", timeout_graceful_shutdown=SECONDS_TO_CLOSE)
    host, port = listening.getsockname()[:2]
    address = f"[{host}]" if ":" in host else host
    say(f"http://{address}:{port}  (Ctrl-C ends it)")
    uvicorn.Server(settings).run(sockets=[listening])
