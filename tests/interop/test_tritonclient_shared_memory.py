"""tritonclient.utils.shared_memory, unchanged and in its own process, against a running gateway."""

from __future__ import annotations

from typing import Any

import pytest
from support.models import RepositoryBuilder, onnx_identity
from support.server import serving

pytestmark = pytest.mark.timeout(120)
PAIR = """
backend: "echo"
max_batch_size: 8
input [ { name: "a" data_type: TYPE_FP32 dims: [ 4 ] }, { name: "b" data_type: TYPE_INT64 dims: [ 1 ] } ]
output [ { name: "c" data_type: TYPE_FP32 dims: [ 4 ] }, { name: "d" data_type: TYPE_INT64 dims: [ 1 ] } ]
"""


@pytest.fixture(scope="module")
def told(transport: str, tmp_path_factory: pytest.TempPathFactory, tritonclient: Any) -> dict[str, Any]:
    """What `shared_memory.py` brought."""
    repository = RepositoryBuilder(tmp_path_factory.mktemp("models"))
    repository.add("pair", config=PAIR)
    repository.add("texts", {"model.onnx": onnx_identity("BYTES", ("batch", "texts"))})
    with serving(repository.root, "--allow-shared-memory") as gateway:
        return tritonclient("shared_memory.py", gateway.address, "pair", "texts")


def test_regions_are_registered_listed_and_forgotten(told: dict[str, Any]) -> None:
    """A program that manages regions on Triton, clearing up CUDA's too, does so here."""
    assert "system_shared_memory" in told["extensions"]
    assert told["status"] == {"in": [True, "1024"], "out": [True, "1024"]}
    assert (told["left"], told["cuda"]) == (["out"], {})


@pytest.mark.parametrize("way", ["sync", "async", "stream", "asyncio"])
def test_numbers_come_and_go_in_memory(told: dict[str, Any], way: str) -> None:
    """In every way of calling, tensors in shared memory come back right, beside others that are sent."""
    assert told[way] == [True, True]


def test_texts_come_and_go_in_memory(told: dict[str, Any]) -> None:
    """BYTES tensors, as tritonclient lays them out in memory, are understood and given back."""
    assert told["texts"] == ["shared", "größe"]


def test_mistakes_have_tritons_phrases(told: dict[str, Any]) -> None:
    """Programs that look for Triton's status and words when a region is wrong find them."""
    expected = [
        ("ALREADY_EXISTS", "shared memory region 'in' already in manager"),
        ("INVALID_ARGUMENT", "the object has 1024 bytes, expected a part of them, got 2048 from 0 on"),
        ("INVALID_ARGUMENT", "Unable to open shared memory region: '/nobody'"),
        ("NOT_FOUND", "Unable to find system shared memory region: 'nobody'"),
        ("NOT_FOUND", "Unable to find shared memory region: 'nobody'"),
        ("INVALID_ARGUMENT", "shared memory region 'in' has 1024 bytes, expected a part of them, got 32 from 1000 on"),
        ("INVALID_ARGUMENT", "input 'a' of model 'pair': FP32 [2,4] takes 32 bytes of raw contents, got 36"),
        ("UNIMPLEMENTED", "this server does not offer CudaSharedMemoryRegister"),
    ]
    assert len(told["refusals"]) == len(expected)
    for (code, message), (expected_code, phrase) in zip(told["refusals"], expected, strict=True):
        assert code == f"StatusCode.{expected_code}"
        assert phrase in message
