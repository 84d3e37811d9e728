"""The server's log: lines for people or a JSON object each, what a line is about, and the access log."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, TextIO

from gateway.errors import InvalidRequest, NotOffered

_log = logging.getLogger(__name__)
_access_log = logging.getLogger("gateway.access")

Setting = bool | int | str


def about(**fields: object) -> dict[str, object]:
    """What a line is about, for its `extra`; what is unknown ("" or None) is left out.

    The keys, everywhere the same: model, version, request_id, trace_id, rpc, error_id.
    """
    return {key: value for key, value in fields.items() if value not in ("", None)}


class AccessLog:
    """A line for each call as it ends, whatever the level of the log."""

    def __init__(self) -> None:
        _access_log.setLevel(logging.INFO)

    def ended(self, rpc: str, code: str, received_ns: int, **fields: object) -> None:
        """Note a call: the name of its status code, when it arrived (`time.perf_counter_ns`), what it was about."""
        taken_ms = round((time.perf_counter_ns() - received_ns) / 1e6, 3)
        _access_log.info("call", extra=about(rpc=rpc, code=code, duration_ms=taken_ms, **fields))


_OWN = frozenset([*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"])
"""What every record has, so that all else is a field that somebody gave it."""

# All that ends a line or steers a terminal, but for \n and \t: whoever chose a name must not write lines of ours.
_UNSAFE = {
    code: repr(chr(code))[1:-1]
    for code in [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029]
    if chr(code) not in "\n\t"
}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _OWN}


def _shown(value: object) -> str:
    try:
        return str(value)
    except Exception:  # a line is better than none
        return f"<{type(value).__name__}>"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage().rstrip()
    except Exception:  # arguments that do not fit, or cannot be shown
        return f"{_shown(record.msg)} {_shown(record.args)}"


def _rfc3339(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Formatter(logging.Formatter):
    def _trace(self, record: logging.LogRecord) -> str:
        """The exception and the stack that came with a record."""
        trace = [self.formatException(record.exc_info)] if record.exc_info and record.exc_info[0] else []
        return "\n".join([*trace, *([record.stack_info] if record.stack_info else [])])


class _Human(_Formatter):
    """A line as people read it. What goes on below is indented, so that it cannot pass for a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {key}={_quoted(_shown(value))}" for key, value in _fields(record).items())
        text = f"{self._time(record)} {record.levelname:<7} {_message(record)}{fields}"
        if trace := self._trace(record):
            text = f"{text}\n{trace}"
        return text.translate(_UNSAFE).replace("\n", "\n  ")

    def _time(self, record: logging.LogRecord) -> str:
        return self.formatTime(record)


class _HumanUtc(_Human):
    def _time(self, record: logging.LogRecord) -> str:
        return _rfc3339(record)


def _quoted(text: str) -> str:
    plain = text and text.isprintable() and not any(character in " \"'=" for character in text)
    return text if plain else repr(text)


class _Json(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": _rfc3339(record),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
        }
        entry = {**entry, **_fields(record), **entry}
        if trace := self._trace(record):
            entry["exception"] = trace
        try:
            return json.dumps(entry, default=_shown, allow_nan=False)
        except (TypeError, ValueError, RecursionError):  # keys and numbers that JSON does not know, a cycle
            return json.dumps({_shown(key): _shown(value) for key, value in entry.items()})


_JSON = "json"
_HUMAN = "default"
_FORMATS: Mapping[str, type[_Formatter]] = {_HUMAN: _Human, "ISO8601": _HumanUtc, _JSON: _Json}
"""By Triton's names, and one of ours."""

_SWITCHES = {
    logging.ERROR: "log_error",
    logging.WARNING: "log_warning",
    logging.INFO: "log_info",
    logging.DEBUG: "log_verbose_level",
}
"""Which setting lets lines of a level, and of those up to the next one, through. What is worse always comes."""

_KINDS = {bool: "bool_param", int: "uint32_param", str: "string_param"}


def kind_of(value: Setting) -> str:
    """The field that carries a setting's value on the wire."""
    return _KINDS[type(value)]


class ServerLog:
    """What is logged, and how; the settings are Triton's and may change while the server runs.

    Args:
        level: the least severe one to log, by its name.
        log_format: "human", "json", or "auto": human if the stream is a terminal.
        stream: where it goes.
    """

    def __init__(self, level: str, log_format: str, stream: TextIO) -> None:
        as_json = log_format == "json" or (log_format == "auto" and not stream.isatty())
        lowest = logging.getLevelNamesMapping()[level.upper()]
        self._settings: dict[str, Setting] = {
            "log_file": "",
            "log_info": lowest <= logging.INFO,
            "log_warning": lowest <= logging.WARNING,
            "log_error": lowest <= logging.ERROR,
            "log_verbose_level": int(lowest <= logging.DEBUG),
            "log_format": _JSON if as_json else _HUMAN,
        }
        self._handler = logging.StreamHandler(stream)
        self._handler.addFilter(self._lets_through)

    def __repr__(self) -> str:
        return f"<ServerLog {self._settings}>"

    @property
    def settings(self) -> Mapping[str, Setting]:
        """All settings in force, by Triton's names."""
        return MappingProxyType(self._settings)

    def install(self) -> None:
        """Take everything that this process logs, Python's warnings too."""
        logging.getLogger().addHandler(self._handler)
        logging.captureWarnings(capture=True)
        # It tells with a traceback of every header that is not UTF-8, of which a caller may send any number.
        logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)
        self._apply()

    def change(self, changes: Mapping[str, Setting | None]) -> None:
        """Change settings, all or none of them.

        Raises:
            InvalidRequest: there is no such setting, or its value is of another kind.
            NotOffered: the log is to go into a file.
        """
        checked = {name: self._checked(name, value) for name, value in changes.items()}
        if checked:
            _log.warning("a client changes the log's settings: %s", checked)
        self._settings |= checked
        self._apply()

    def _checked(self, name: str, value: Setting | None) -> Setting:
        if name not in self._settings:
            raise InvalidRequest(f"unknown log setting '{name}': expected one of {', '.join(self._settings)}")
        expected, got = kind_of(self._settings[name]), "no value" if value is None else kind_of(value)
        if value is None or got != expected:
            raise InvalidRequest(f"log setting {name}: expected {expected}, got {got}")
        if name == "log_file" and value:
            raise NotOffered("log_file: this server writes no files that clients name; its log goes to stderr")
        if name == "log_format" and value not in _FORMATS:
            raise InvalidRequest(f"log setting log_format: expected one of {', '.join(_FORMATS)}, got '{value}'")
        return value

    def _apply(self) -> None:
        self._handler.setFormatter(_FORMATS[str(self._settings["log_format"])]())
        lowest = min((level for level, name in _SWITCHES.items() if self._settings[name]), default=logging.CRITICAL)
        logging.getLogger().setLevel(max(logging.INFO, lowest))
        for ours in ("gateway", "backends"):  # debug is about requests, not about the libraries that carry them
            logging.getLogger(ours).setLevel(lowest)

    def _lets_through(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.CRITICAL or record.name == _access_log.name:
            return True
        name = next((name for level, name in _SWITCHES.items() if record.levelno >= level), "log_verbose_level")
        return bool(self._settings[name])
