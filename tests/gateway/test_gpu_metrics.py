"""The metrics of GPUs, as far as a machine without one can show them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.calls import ECHO
from support.gpus import Machine
from support.metrics import OPENMETRICS, fetch, metrics_url, scrape
from support.models import RepositoryBuilder
from support.server import serving

WHOLE = {"uuid": "GPU-a", "memory": [80_000, 20_000], "percent": 25, "mw": 301_500, "limit_mw": 700_000, "mj": 5_000}
PART = {"uuid": "GPU-b", "memory": [10_000, 1_000]}


def of_gpus(scraped: dict[tuple[str, ...], float]) -> dict[tuple[str, str], float]:
    """What is said of GPUs."""
    return {key: value for key, value in scraped.items() if key[0].startswith(("nv_gpu", "nv_energy"))}  # type: ignore[misc]


def test_gpus_are_told_as_triton_tells_them(tmp_path: Path, repository: RepositoryBuilder) -> None:
    """Dashboards made for Triton show each GPU's load, memory, power and energy; what one does not tell is left out."""
    machine = Machine(tmp_path / "machine", [WHOLE, PART])
    repository.add("echo", config=ECHO)
    with serving(repository.root, environment=machine.environment) as gateway:
        assert of_gpus(scrape(gateway)) == {
            ("nv_gpu_utilization", "GPU-a"): 0.25,
            ("nv_gpu_memory_total_bytes", "GPU-a"): 80_000,
            ("nv_gpu_memory_total_bytes", "GPU-b"): 10_000,
            ("nv_gpu_memory_used_bytes", "GPU-a"): 20_000,
            ("nv_gpu_memory_used_bytes", "GPU-b"): 1_000,
            ("nv_gpu_power_usage", "GPU-a"): 301.5,
            ("nv_gpu_power_limit", "GPU-a"): 700,
            ("nv_energy_consumption", "GPU-a"): 0,
        }
        machine.tells([{**WHOLE, "mj": 7_500}])
        assert of_gpus(scrape(gateway))["nv_energy_consumption", "GPU-a"] == 2.5
        page, _ = fetch(metrics_url(gateway.server), OPENMETRICS)
    assert 'nv_gpu_memory_used_bytes{gpu_uuid="GPU-a"} 20000.0' in page


@pytest.mark.parametrize("when", ["before", "afterwards"])
def test_a_driver_that_is_not_there(when: str, tmp_path: Path, repository: RepositoryBuilder) -> None:
    """A machine without a driver, or one that lost it, has its metrics as before, and none of GPUs."""
    machine = Machine(tmp_path / "machine", [WHOLE])
    repository.add("echo", config=ECHO)
    if when == "before":
        machine.loses_its_driver()
    with serving(repository.root, environment=machine.environment) as gateway:
        if when == "afterwards":
            assert of_gpus(scrape(gateway))
            machine.loses_its_driver()
        scraped = scrape(gateway)
        assert not of_gpus(scraped)
        assert ("nv_cpu_utilization",) in scraped
        assert "gpu" not in fetch(metrics_url(gateway.server))[0]
        if when == "before":
            machine.tells([WHOLE])
            assert of_gpus(scrape(gateway)), "a driver that comes later is found"
