"""Downloads: one process at a time, and errors of the disk that are not taken for the network's."""

import errno
import os
import threading
import time

import pytest
from filelock import FileLock

from dmdistill.io import download as module
from dmdistill.io.download import download
from helpers.http_server import Server


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    server.data = bytes(range(256)) * 40
    yield server
    server.close()


def test_a_second_process_waits_and_uses_the_firsts_file(server, tmp_path):
    """Each FileLock is as of another process."""
    file, finished = tmp_path / "file", threading.Event()
    with FileLock(tmp_path / "file.part.lock"):
        thread = threading.Thread(
            target=lambda: (download(server.url, file, check=lambda _: None), finished.set()), daemon=True
        )
        thread.start()
        time.sleep(0.2)
        assert not finished.is_set()
        file.write_bytes(b"the first's")
    assert finished.wait(10)
    assert file.read_bytes() == b"the first's"
    assert server.asked == []


def test_four_at_once_download_once(server, tmp_path):
    file = tmp_path / "deep" / "file"
    threads = [threading.Thread(target=lambda: download(server.url, file, check=lambda _: None)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.read_bytes() == server.data
    assert len(server.asked) == 1


def test_a_full_disk_is_not_the_networks_fault(server, tmp_path, monkeypatch):
    class Full:
        name = "file.part"

        def write(self, content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    copy = module.copy_stream
    monkeypatch.setattr(module, "copy_stream", lambda source, target, **options: copy(source, Full(), **options))
    with pytest.raises(ValueError, match=r"^file\.part cannot be written: No space left on device$"):
        download(server.url, tmp_path / "file", check=lambda _: None)


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=f"{tmp_path}/file/cache/x.part cannot be written: Not a directory"):
        download(server.url, tmp_path / "file" / "cache" / "x", check=lambda _: None)
    assert server.asked == []
