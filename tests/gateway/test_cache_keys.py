"""Which requests count as equal to the response cache."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from support.batching import request
from support.caching import CachedRig, key_of
from support.fake_clock import on_fake_clock

from gateway.request import InferenceRequest


def variants() -> dict[str, InferenceRequest]:
    """Requests with the same sixteen bytes, but different answers."""
    plain = request(1, 1, 4)
    array = plain.inputs["x"]
    return {
        "plain": plain,
        "shape": replace(plain, inputs={"x": array.reshape(2, 2)}, rows=2),
        "datatype": replace(plain, inputs={"x": array.view(np.int32)}),
        "name": replace(plain, inputs={"w": array}),
        "outputs": replace(plain, outputs=("z",)),
        "order of outputs": replace(plain, outputs=("z", "y")),
        "typed": replace(plain, typed=True),
    }


@on_fake_clock
async def test_key_has_all_that_changes_the_answer():
    """The same bytes in another shape, datatype or input, for other outputs or as typed contents: another request."""
    rig = CachedRig()
    keys = {kind: key_of(rig.cache, wanted) for kind, wanted in variants().items()}
    assert len(set(keys.values())) == len(keys)
    assert all(len(key) >= 16 for key in keys.values())


@on_fake_clock
async def test_key_has_nothing_else():
    """The id, the limits and the memory layout of a request do not keep it from being answered from the cache."""
    rig = CachedRig()
    plain = request(0, 8, 4)
    plain.inputs["x"] = np.arange(32, dtype=np.float32).reshape(8, 4)
    strided = np.asfortranarray(plain.inputs["x"])
    for other in (
        replace(plain, id="another"),
        replace(plain, deadline=plain.deadline - 1, timeout_s=3, priority=2),
        replace(plain, inputs={"x": strided}),
    ):
        assert key_of(rig.cache, other) == key_of(rig.cache, plain)


@on_fake_clock
async def test_texts_are_told_apart_by_where_they_end():
    """["ab", "c"] is another request than ["a", "bc"]."""
    rig = CachedRig()
    texts = [["ab", "c"], ["a", "bc"], ["abc", ""], ["", "abc"]]
    wanted = [replace(request(0), inputs={"x": np.array([[t.encode() for t in row]], object)}) for row in texts]
    assert len({key_of(rig.cache, each) for each in wanted}) == 4


@pytest.mark.parametrize("halves", [(1_000, 9_000), (2_000, 2_000)])
@on_fake_clock
async def test_tensors_are_told_apart_by_where_they_end(halves):
    """Large or small, the same bytes spread differently over two inputs are another request."""
    rig = CachedRig()
    everything = np.arange(sum(halves), dtype=np.float32).reshape(1, -1)
    keys = set()
    for cut in (halves[0], halves[0] + 1):
        inputs = {"a": everything[:, :cut], "b": everything[:, cut:]}
        keys.add(key_of(rig.cache, replace(request(0), inputs=inputs)))
        keys.add(key_of(rig.cache, replace(request(0), inputs=dict(reversed(inputs.items())))))
    assert len(keys) == 4


def test_processes_have_keys_of_their_own():
    """What a request hashes to cannot be foreseen from outside: it changes with every start of the server."""
    script = (
        "from gateway.digest import digest, question;"
        "from tensorgate_client import encode_infer_request as encode, framing;"
        "print(digest(question(framing.parse_infer_request(encode('m', {}).SerializeToString()))).hex())"
    )
    run = lambda: subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)  # noqa: E731
    first, second = (run().stdout for _ in range(2))
    assert len(first) == 33
    assert first != second


@pytest.mark.parametrize("columns", [2, 20_000])
@on_fake_clock
async def test_a_single_bit_makes_another_request(columns):
    """Small or large, a tensor that differs in its last element is another request."""
    rig = CachedRig()
    one, other = request(1, 1, columns), request(1, 1, columns)
    other.inputs["x"][0, -1] = np.nextafter(np.float32(1), np.float32(2))
    assert key_of(rig.cache, one) != key_of(rig.cache, other)
