"""Random concurrent traffic, as the soak sends it for longer (`make soak`)."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from soak.drive import drive
from soak.models import KINDS, Factors, build
from support.concurrent import batches, counts, statistics
from support.server import serving

pytestmark = pytest.mark.usefixtures("transport")

_SECONDS = 6
_SEED = os.environ.get("TENSORGATE_TEST_SEED") or os.urandom(4).hex()


def test_every_request_ends_as_it_may(tmp_path: Path) -> None:
    """In any mixture of callers, models, limits, cancellations, poison and reloads everyone gets the own rows or an
    error that the circumstances explain, once.
    """  # noqa: D205  # one sentence
    repository = build(tmp_path / "models")
    Factors(tmp_path / "factors")
    options = ("--model-control", "explicit", "--load-model", "*", "--cache-size-mb", "1")
    with serving(repository.root, *options) as gateway:
        report = asyncio.run(drive(gateway.address, tmp_path, _SEED, _SECONDS, processes=2))
        summary = f"TENSORGATE_TEST_SEED={_SEED} {dict(report.outcomes)}"
        assert report.good, "\n".join([summary, *report.complaints])
        assert report.outcomes["answered"] > 100, summary
        assert report.outcomes["reloads"] > 3, summary
        assert "never retrieved" not in gateway.server.log
        for name in KINDS:
            batches(gateway, name)
            told = counts(statistics(gateway, name))
            # Whoever was answered was so by an execution or by the cache.
            answered = told.get("compute_infer", 0) + told.get("cache_hit", 0)
            assert told.get("success", 0) == told.get("queue", 0) == answered
