"""Calls in another process: whatever goes wrong there comes back as a sentence."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from backends.optimize.child import Child, StepFailed


def test_result():
    """The call runs in another process, the next one in the same."""
    with Child() as child:
        first = child.call(os.getpid)
        assert first != os.getpid()
        assert child.call(os.getpid) == first


@pytest.mark.parametrize(
    ("function", "argument", "expected"),
    [
        (float, "one", "ValueError: could not convert string to float: 'one'"),
        (sys.exit, "last words", "the process ended with code 1: last words"),
        (os._exit, 3, "the process ended with code 3"),
        (signal.raise_signal, signal.SIGSEGV, "the process was killed by SIGSEGV"),
    ],
)
def test_failures(function, argument, expected):
    """An exception, an exit and a crash are told apart, and the next call works."""
    with Child() as child:
        with pytest.raises(StepFailed) as failed:
            child.call(function, argument)
        assert str(failed.value) == expected
        assert child.call(abs, -1) == 1


def test_too_long():
    """What takes longer than it may is ended with its process."""
    with Child(timeout_s=1) as child:
        process = child.call(os.getpid)
        with pytest.raises(StepFailed, match=r"not done after 1 s"):
            child.call(time.sleep, 600)
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
