"""Entries of config.pbtxt's `parameters` that the gateway heeds itself; all others are the backend's."""

from __future__ import annotations

from math import inf, isfinite

from backends.base import SWITCH, LoadError
from tensorgate_client.wire import model_config_pb2 as pb

PAD = "pad"
"""Dimensions to pad, and to which sizes: see `padding.py`."""

BATCH_SIZES = "batch_sizes"
"""The only numbers of rows that the model runs with."""

DETERMINISTIC = "deterministic"
"""false: equal inputs may give different outputs, so responses are never cached."""

CACHE_TTL_S = "response_cache_ttl_s"
"""Seconds for which a cached response holds."""

RAY_NUM_CPUS = "ray_num_cpus"
"""Processors that Ray keeps for an instance; heeded with `--engine ray` alone, as the next one."""

RAY_NUM_GPUS = "ray_num_gpus"
"""GPUs that Ray keeps for an instance, or a part of one."""

OWN = frozenset((PAD, BATCH_SIZES, DETERMINISTIC, CACHE_TTL_S, RAY_NUM_CPUS, RAY_NUM_GPUS))

_LARGEST = 2**24  # of a dimension; more is a slip of the hand, and no memory would hold it


def batch_sizes(config: pb.ModelConfig) -> tuple[int, ...]:
    """The declared batch sizes in rows, ascending; none if any will do.

    Raises:
        LoadError: they are no numbers above 0.
    """
    return sizes(config.parameters[BATCH_SIZES].string_value, BATCH_SIZES) if BATCH_SIZES in config.parameters else ()


def deterministic(config: pb.ModelConfig) -> bool:
    """Whether equal inputs give equal outputs; so it is unless it is denied.

    Raises:
        LoadError: the parameter is neither yes nor no.
    """
    text = _text(config, DETERMINISTIC, "true").lower()
    if text not in SWITCH:
        raise LoadError(f"parameter '{DETERMINISTIC}': expected one of {', '.join(SWITCH)}, got '{text}'")
    return SWITCH[text]


def cache_ttl_s(config: pb.ModelConfig) -> float:
    """Seconds for which a response may be kept, infinite if nothing is said.

    Raises:
        LoadError: the parameter is no number above 0.
    """
    text = _text(config, CACHE_TTL_S, "")
    return seconds(CACHE_TTL_S, text) if text else inf


def seconds(key: str, text: str) -> float:
    """The parameter `key` as a finite time.

    Raises:
        LoadError: it is no number above 0.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not isfinite(value) or value <= 0:
        raise LoadError(f"parameter '{key}': expected seconds above 0, as '60', got '{text}'")
    return value


def amount(config: pb.ModelConfig, key: str, default: float) -> float:
    """The parameter `key` as a number of things that may be shared: 0.5 is half of one.

    Raises:
        LoadError: it is no such number; of more than one only whole ones can be had.
    """
    text = _text(config, key, str(default))
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < _LARGEST or (number > 1 and number != int(number)):
        raise LoadError(
            f"parameter '{key}': expected a number from 0, above 1 a whole one, as '0.5' or '2', got '{text}'"
        )
    return number


def sizes(text: str, key: str) -> tuple[int, ...]:
    """Sizes separated by spaces or commas, ascending.

    Raises:
        LoadError: there is none, or one is no whole number above 0.
    """
    words = text.replace(",", " ").split()
    if not words or not all(word.isdecimal() and 0 < int(word) <= _LARGEST for word in words):
        raise LoadError(f"parameter '{key}': expected sizes from 1 to {_LARGEST}, as '1 8 32', got '{text}'")
    return tuple(sorted({int(word) for word in words}))


def _text(config: pb.ModelConfig, key: str, default: str) -> str:
    return config.parameters[key].string_value.strip() if key in config.parameters else default
