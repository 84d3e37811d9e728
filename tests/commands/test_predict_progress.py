"""What `tensorgate predict` shows on a terminal while it runs."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios

import numpy as np
import pytest
from support.commands import hurried, write


@pytest.fixture
def shown(tmp_path, gateway):
    """Runs a command of many rows on a terminal of so many columns; what it drew, one drawing after the other."""

    def run(columns: int) -> list[str]:
        source = write(tmp_path / "in.npy", x=np.zeros((1_000_000, 4), np.float32))
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        files = ("--input", source, "--output", tmp_path / "out.npy", "--address", gateway.address)
        command = [*hurried(keep=0), "predict", "identity_FP32", *files]
        process = subprocess.Popen(list(map(str, command)), stderr=theirs)
        os.close(theirs)
        text = b""
        try:
            while data := os.read(ours, 4096):
                text += data
                if text.count(b"\r") >= 5:
                    process.terminate()
        except OSError:  # how it shows that the other end is closed
            pass
        finally:
            process.kill()
            process.wait()
            os.close(ours)
        return text.decode().split("\r")

    return run


@pytest.mark.parametrize("columns", [20, 80, 200])
def test_the_line_fits(shown, columns):
    """Whatever the terminal's width, a line is drawn over the one before, and never over two."""
    drawn = shown(columns)
    bars = [text for text in drawn if "%" in text]
    assert bars[0].startswith("  0% ")
    assert len(bars) >= 2
    assert all(len(text) < columns for text in bars)
    assert ("[" in bars[0]) == (columns > 20)
