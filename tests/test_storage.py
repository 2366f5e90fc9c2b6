"""Files that survive a kill, a full disk and bad bytes."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from aimo.inference.errors import AimoError
from aimo.inference.storage import LineFile, append_lines, read_json, read_lines, write_lines, write_whole

# Characters at which str.splitlines would cut a line, and what UTF-8 cannot hold.
TRICKY = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r", "\r\n", "\n", "\udc4d", "\x00", "é𝔽"]


def test_lines_return_any_text_as_it_was_written(tmp_path):
    records = [{"text": f"a{text}b"} for text in TRICKY]
    for write in (write_lines, append_lines):
        write(tmp_path / write.__name__, records)
        assert read_lines(tmp_path / write.__name__) == records


def test_a_line_that_was_cut_off_is_removed_and_never_glued_to_the_next(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": "' + b"2" * 200_000)  # longer than a block that is read for its end
    assert read_lines(path) == [{"a": 1}]
    append_lines(path, [{"a": 3}])
    assert read_lines(path) == [{"a": 1}, {"a": 3}]


@pytest.mark.parametrize("bad", [b"[1]", b'{"a": ', b"\xff", b"[" * 100_000, b""])
def test_a_broken_file_and_a_broken_line_are_named_with_the_remedy(tmp_path, bad):
    path = tmp_path / "file"
    path.write_bytes(bad)
    with pytest.raises(AimoError, match=r"file: .*; make it again"):
        read_json(path, "make it again")
    path.write_bytes(b'{"a": 1}\n' + bad + b'\n{"a": 2}\n')
    with pytest.raises(AimoError, match=r"file, line 2: .*; remove the line"):
        read_lines(path)


def test_a_full_disk_leaves_the_lines_before_whole(tmp_path):
    path = tmp_path / "lines.jsonl"
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with LineFile(path) as file:
        file.append({"text": "x" * 100})
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
        try:
            with pytest.raises(OSError):
                file.append({"text": "y" * 1000})
            with pytest.raises(OSError):
                write_whole(tmp_path / "whole", "z" * 1000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        file.append({"text": "z"})
    assert [line["text"][0] for line in read_lines(path)] == ["x", "z"]
    assert os.listdir(tmp_path) == ["lines.jsonl"]


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    """Killed at any moment, the file holds one version or the other."""
    code = """
import sys, pathlib, itertools
from aimo.inference.storage import write_json
for i in itertools.count():
    write_json(pathlib.Path(sys.argv[1]), {"n": i, "text": str(i) * 100_000})
"""
    path = tmp_path / "file.json"
    for delay in (0.0, 0.03):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)])
        while not path.exists():
            time.sleep(0.01)
        time.sleep(delay)
        process.kill()
        process.wait()
        held = json.loads(path.read_text())
        assert held["text"] == str(held["n"]) * 100_000
