"""The log of a run: no changed digit and no missing row goes undetected."""

import json
import random

import pytest

from dmdistill.training.metrics_log import MetricsLog, read_metrics

ROWS = [{"step": 5 * i, "seconds": i / 4, "loss": 1 / (i + 1), "frechet_ema2": 10.0 - i} for i in range(1, 9)]


@pytest.fixture
def log(tmp_path):
    """The log of ROWS."""
    log = MetricsLog(tmp_path)
    log.truncate()
    for row in ROWS:
        log.append(row)
    return log


def checksums(log):
    return [int(json.loads(line)["crc32"], 16) for line in log.file.read_text().splitlines()]


def test_rows_are_read_as_they_were_written(log, tmp_path):
    assert read_metrics(tmp_path) == ROWS
    assert log.checksum == checksums(log)[-1]


def test_no_changed_byte_goes_undetected(log, tmp_path):
    """Of 500 changed bytes; only the last row may be taken for one that a killed run left unfinished."""
    content, rng, detected = log.file.read_bytes(), random.Random(0), 0
    for _ in range(500):
        place = rng.randrange(len(content))
        digits = b"0123456789" if chr(content[place]).isdigit() else bytes(range(256))
        log.file.write_bytes(content[:place] + bytes([rng.choice(digits)]) + content[place + 1 :])
        unfinished = not log.file.read_bytes().endswith(b"\n")
        if log.file.read_bytes() == content or unfinished:
            assert read_metrics(tmp_path) == ROWS[: len(ROWS) - unfinished]
        else:
            with pytest.raises(ValueError, match=r"metrics\.jsonl, line \d+, is damaged .*: restore") as caught:
                read_metrics(tmp_path)
            assert "\n" not in str(caught.value)
            detected += 1
    assert detected > 400  # the others wrote the byte that was there


def test_no_missing_row_goes_undetected(log, tmp_path):
    lines = log.file.read_bytes().splitlines(keepends=True)
    for i in range(len(lines) - 1):
        log.file.write_bytes(b"".join(lines[:i] + lines[i + 1 :]))
        with pytest.raises(ValueError, match=rf"metrics\.jsonl, line {i + 1}, is damaged .*rows before it"):
            read_metrics(tmp_path)


@pytest.mark.parametrize("change", [lambda line: line.split(b', "crc32')[0] + b"}", lambda line: b'{"step": 1}'])
def test_a_row_without_a_checksum_among_others_is_damaged(change, log, tmp_path):
    lines = log.file.read_bytes().splitlines()
    for i in (2, len(lines) - 1):
        log.file.write_bytes(b"\n".join([*lines[:i], change(lines[i]), *lines[i + 1 :], b""]))
        with pytest.raises(ValueError, match=f"line {i + 1}, is damaged .*no checksum"):
            read_metrics(tmp_path)


def test_a_log_without_checksums_is_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert read_metrics(tmp_path) == ROWS


@pytest.mark.parametrize(
    "row", [[3], {"seconds": 1}, {"step": 2, "loss": None}, {"step": 2, "loss": "1"}, {"step": 2.5}]
)
def test_what_is_no_row_is_one_line(row, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1, is damaged"):
        read_metrics(tmp_path)


def test_a_resumed_log_continues_as_if_never_stopped(log, tmp_path):
    before = log.file.read_bytes()
    resumed = MetricsLog(tmp_path)
    resumed.checksum = checksums(log)[4]
    log.file.write_bytes(before + b'{"step": 99, "sec')
    resumed.truncate()
    assert read_metrics(tmp_path) == ROWS[:5]
    for row in ROWS[5:]:
        resumed.append(row)
    assert log.file.read_bytes() == before


def test_only_damage_before_the_checkpoint_stops_a_resumed_run(log, tmp_path):
    lines = log.file.read_bytes().splitlines(keepends=True)
    resumed = MetricsLog(tmp_path)
    resumed.checksum = checksums(log)[4]
    damaged = lines[2].replace(b"5", b"6", 1)
    for content in (lines[:4], [*lines[:2], damaged, *lines[3:]], [*lines[:2], *lines[3:]], []):
        log.file.write_bytes(b"".join(content))
        with pytest.raises(ValueError, match=r"metrics\.jsonl.* is damaged.*remove it"):
            resumed.truncate()
    log.file.write_bytes(b"".join(lines[:6]) + b"\0" * 99 + b"\n")  # left by a power cut, after the checkpoint
    resumed.truncate()
    assert read_metrics(tmp_path) == ROWS[:5]


def test_a_removed_log_is_started_anew(log, tmp_path):
    log.file.unlink()
    log.truncate()
    log.append(ROWS[0])
    assert read_metrics(tmp_path) == ROWS[:1]
