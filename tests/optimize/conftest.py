"""What the tests of `tensorgate optimize` share."""

from __future__ import annotations

import pytest
from support.commands import Here


@pytest.fixture
def here(capsys, monkeypatch):
    """Runs `tensorgate ...` within this process."""
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")
    return Here(capsys)
