"""tritonclient.grpc reads and changes a gateway's log settings."""

from __future__ import annotations

from typing import Any

from support.models import RepositoryBuilder
from support.server import serving

SETTINGS = {
    "log_file": {"string_param": ""},
    "log_info": {"bool_param": True},
    "log_warning": {"bool_param": True},
    "log_error": {"bool_param": True},
    "log_verbose_level": {"uint32_param": 0},
    "log_format": {"string_param": "default"},
}


def test_log_settings_are_read_and_changed(transport: str, repository: RepositoryBuilder, tritonclient: Any) -> None:
    """An operator's script for Triton's log settings does its work here, too, and is told what is not to be had."""
    with serving(repository.root) as gateway:
        read, changed, info, log_file, nothing, restored = tritonclient("log_settings.py", gateway.address)
        assert "a client changes the log's settings: {'log_info': False}" in gateway.server.log
    assert read == restored == {"settings": SETTINGS}
    assert changed["settings"] == SETTINGS | {
        "log_verbose_level": {"uint32_param": 1},
        "log_format": {"string_param": "ISO8601"},
    }
    assert info is False
    assert log_file[0] == "StatusCode.UNIMPLEMENTED"
    assert nothing == ["StatusCode.INVALID_ARGUMENT", "log setting log_error: expected bool_param, got no value"]
