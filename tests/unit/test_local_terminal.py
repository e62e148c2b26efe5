"""`comd run` on a terminal: the live picture, then the framed tables."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import yaml

from tests.unit.rule_examples import manifest

DRIVER = Path(__file__).with_name("local_driver.py")


def test_on_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(manifest(rounds__count=1)))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(DRIVER), str(tmp_path / "run.yaml"), str(tmp_path / "work")],
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "50"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    text = read_all(ours).decode()
    os.close(ours)
    assert process.wait(timeout=30) == 0, text
    assert "\x1b[" in text, "it draws"
    assert "┃" in text, "tables have frames"
    assert "hard / easy" in text
    assert "0.400 [0.100, 0.900]" in text


def read_all(descriptor: int) -> bytes:
    """Until the other side of the terminal is closed, which Linux reports as an error."""
    shown = bytearray()
    while True:
        try:
            data = os.read(descriptor, 4096)
        except OSError:
            return bytes(shown)
        if not data:
            return bytes(shown)
        shown.extend(data)
