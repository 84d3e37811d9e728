"""Response cache: equal requests are computed once, and nobody ever gets an answer that is not theirs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from support.calls import Gate, eventually, first_output, request
from support.concurrent import POISON, arrived, moody, parameter, start, values
from support.models import RepositoryBuilder
from support.server import Gateway, serving

from tensorgate_client.tensors import from_raw, from_typed, to_raw
from tensorgate_client.wire import inference_pb2 as pb

pytestmark = pytest.mark.usefixtures("transport")

Code = grpc.StatusCode
CACHED = "response_cache { enable: true }\n"

WIDE = """
from pathlib import Path

class Model:
    inputs = [("x", "float32", (-1, -1)), ("t", object, (-1, -1))]
    outputs = [("y", "float32", (-1, -1)), ("z", "float32", (-1, -1)), ("u", object, (-1, -1))]

    def load(self, source):
        self.file = Path(source.parameters["executions"])
        self.factor = source.version

    def execute(self, inputs):
        with self.file.open("a") as file:
            print(self.factor, file=file)
        return {"y": inputs["x"] * self.factor, "z": inputs["x"] + 100, "u": inputs["t"]}
"""


class Wide:
    """A model of numbers and texts, and how often its versions have executed."""

    def __init__(self, folder: Path, repository: RepositoryBuilder) -> None:
        self.file = folder / "executions"
        self.file.touch()
        config = parameter("executions", self.file) + "version_policy { all {} }\n" + CACHED
        for name, version in (("wide", 1), ("wide", 3), ("twin", 1)):
            repository.add(name, {"model.py": WIDE}, config, version)

    @property
    def executions(self) -> int:
        """Of all models and versions together."""
        return len(self.file.read_text().splitlines())


@pytest.fixture
def wide(tmp_path: Path, repository: RepositoryBuilder) -> Wide:
    """The models `wide`, of two versions, and `twin`."""
    return Wide(tmp_path, repository)


@pytest.fixture
def gateway(wide: Wide, repository: RepositoryBuilder) -> Iterator[Gateway]:  # fills the repository
    """Serves the wide models."""
    with serving(repository.root, "--cache-size-mb", "64") as gateway:
        yield gateway


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Holds up models, or counts what they execute."""
    return Gate(tmp_path / "gate")


def message(numbers: object, texts: object, model: str = "wide", version: str = "1") -> pb.ModelInferRequest:
    """A request to a wide model."""
    return request(model, {"x": np.array(numbers, np.float32), "t": np.array(texts, object)}, version)


def answer(gateway: Gateway, sent: pb.ModelInferRequest) -> pb.ModelInferResponse:
    """What it is answered with."""
    return gateway.stub.ModelInfer(sent, timeout=60)


TEXTS = [[b"ab", b"c"]]
BASE = message([[1, 2]], TEXTS)


def variants() -> dict[str, pb.ModelInferRequest]:
    """Requests that each differ from `BASE` in one respect, and so are no request that was answered before."""
    outputs = pb.ModelInferRequest.InferRequestedOutputTensor
    some, swapped, typed = (message([[1, 2]], TEXTS) for _ in range(3))
    some.outputs.extend([outputs(name="y")])
    swapped.outputs.extend([outputs(name="z"), outputs(name="y"), outputs(name="u")])
    typed.parameters["binary_data_output"].bool_param = False
    return {
        "a bit": message([[1, np.nextafter(np.float32(2), np.float32(3))]], TEXTS),
        "sign of zero": message([[-0.0, 0]], TEXTS),
        "zero": message([[0, 0]], TEXTS),
        "shape": message([[1], [2]], [[b"ab"], [b"c"]]),
        "shape of texts": message([[1, 2]], [[b"abc"]]),
        "where texts part": message([[1, 2]], [[b"a", b"bc"]]),
        "one output": some,
        "order of outputs": swapped,
        "typed": typed,
        "model": message([[1, 2]], TEXTS, "twin"),
        "version": message([[1, 2]], TEXTS, version="3"),
    }


def check(response: pb.ModelInferResponse, sent: pb.ModelInferRequest) -> None:
    """The response is that of a wide model to just this request."""
    assert (response.model_name, response.model_version) == (sent.model_name, sent.model_version)
    numbers, texts = (
        from_raw(raw, tensor.datatype, tensor.shape)
        for raw, tensor in zip(sent.raw_input_contents, sent.inputs, strict=True)
    )
    expected = {"y": numbers * int(sent.model_version), "z": numbers + 100, "u": texts}
    wanted = [output.name for output in sent.outputs] or list(expected)
    assert [output.name for output in response.outputs] == wanted
    typed = "binary_data_output" in sent.parameters
    assert typed == (not response.raw_output_contents)
    for index, output in enumerate(response.outputs):
        if typed:
            array = from_typed(output.contents, output.datatype, output.shape)
        else:
            array = from_raw(response.raw_output_contents[index], output.datatype, output.shape)
        assert array.shape == expected[output.name].shape
        assert bytes(to_raw(array)) == bytes(to_raw(expected[output.name]))


def test_only_equal_requests_share(gateway: Gateway, wide: Wide) -> None:
    """Requests that differ in whatever may change the answer, be it a bit, get their own, computed once each."""
    everything = [BASE, *variants().values()]
    for sent in (*everything, *reversed(everything)):
        check(answer(gateway, sent), sent)
    assert wide.executions == len(everything)


def test_the_same_bytes_in_another_shape(gateway: Gateway, wide: Wide) -> None:
    """The same bytes as [2,3] and as [3,2] are two questions, and each answer has its own shape."""
    for shape in ((2, 3), (3, 2), (2, 3), (3, 2)):
        numbers = np.arange(6, dtype=np.float32).reshape(shape)
        response = answer(gateway, message(numbers, np.full(shape, b"t", object)))
        assert first_output(response).tolist() == numbers.tolist()
    assert wide.executions == 2


def test_what_does_not_change_the_answer_does_not_miss(gateway: Gateway, wide: Wide) -> None:
    """Id, version, priority and limits make no new question; each caller's own id comes back."""
    plain = answer(gateway, BASE)
    versioned, hurried, noted = pb.ModelInferRequest(), pb.ModelInferRequest(), pb.ModelInferRequest()
    for sent in (versioned, hurried, noted):
        sent.CopyFrom(BASE)
    versioned.model_version = "1"
    hurried.parameters["priority"].int64_param = 1
    hurried.parameters["timeout"].int64_param = 60_000_000
    noted.parameters["note"].string_param = "for me"
    assert plain.id == ""
    for number, sent in enumerate((versioned, hurried, noted)):
        sent.id = f"request {number}"
        response = answer(gateway, sent)
        assert response.id == sent.id
        response.id = ""
        assert response == plain
    assert wide.executions == 1


def test_other_spellings_get_the_same_answer(gateway: Gateway, wide: Wide) -> None:
    """Typed contents or another order of inputs are questions of their own, with the same answer."""
    plain = answer(gateway, BASE)
    typed, reordered = pb.ModelInferRequest(), pb.ModelInferRequest()
    for sent in (typed, reordered):
        sent.CopyFrom(BASE)
    del typed.raw_input_contents[:]
    typed.inputs[0].contents.fp32_contents.extend([1, 2])
    typed.inputs[1].contents.bytes_contents.extend(TEXTS[0])
    del reordered.inputs[:], reordered.raw_input_contents[:]
    reordered.inputs.extend(reversed(BASE.inputs))
    reordered.raw_input_contents.extend(reversed(BASE.raw_input_contents))
    for _ in range(2):
        assert [answer(gateway, sent) for sent in (typed, reordered)] == [plain, plain]
    assert wide.executions == 3


def test_raw_and_typed_answers_are_each_right(gateway: Gateway) -> None:
    """Callers of one question who want typed and raw answers each get theirs, also from the cache."""
    typed = variants()["typed"]
    for _ in range(2):
        raw_answer, typed_answer = answer(gateway, BASE), answer(gateway, typed)
        assert len(raw_answer.raw_output_contents) == 3
        assert not raw_answer.outputs[0].HasField("contents")
        assert not typed_answer.raw_output_contents
        assert list(typed_answer.outputs[0].contents.fp32_contents) == [1, 2]
        assert list(typed_answer.outputs[2].contents.bytes_contents) == TEXTS[0]


def test_large_tensors_are_kept_whole(gateway: Gateway, wide: Wide) -> None:
    """Answers of many megabytes come from the cache bit for bit."""
    numbers = np.random.default_rng(4).normal(size=(4, 600_000)).astype(np.float32)
    sent = message(numbers, np.full((4, 1), bytes(100_000), object))
    responses = [answer(gateway, sent) for _ in range(3)]
    assert first_output(responses[0]).tobytes() == numbers.tobytes()
    assert responses[0] == responses[1] == responses[2]
    numbers[3, 599_999] += 1
    assert first_output(answer(gateway, message(numbers, [[b""]] * 4)))[3, 599_999] == numbers[3, 599_999]
    assert wide.executions == 2


def test_a_hundred_equal_requests_make_one_execution(repository: RepositoryBuilder, gate: Gate) -> None:
    """A question that a hundred callers ask at once is computed once, and all of them get the answer."""
    repository.add("cached", moody(gate), CACHED + gate.config)
    with serving(repository.root) as gateway:
        calls = [start(gateway, "cached", 4, 5, id=f"caller {number}") for number in range(100)]
        eventually(gate.begun)
        arrived(gateway)
        gate.open()
        assert [values(call) for call in calls] == [[8, 10]] * 100
        assert [call.result().id for call in calls] == [f"caller {number}" for number in range(100)]
        assert gate.begun() == ["4 5"]


OFF = {
    "not asked for": ("", lambda text: text),
    "said in the parameters": (CACHED + parameter("deterministic", "false"), lambda text: text),
    "said in the class": (CACHED, lambda text: text.replace("    inputs", "    deterministic = False\n    inputs", 1)),
}


@pytest.mark.parametrize("case", OFF)
def test_nothing_is_kept_unless_it_may_be(repository: RepositoryBuilder, gate: Gate, case: str) -> None:
    """A model that did not ask for the cache, or is not a function of its inputs, executes every request."""
    config, change = OFF[case]
    repository.add("model", {"model.py": change(gate.MODEL)}, config + gate.config)
    gate.open()
    with serving(repository.root) as gateway:
        assert [values(start(gateway, "model", 1)) for _ in range(3)] == [[1]] * 3
        assert len(gate.begun()) == 3


def test_failures_are_not_kept(repository: RepositoryBuilder, gate: Gate) -> None:
    """Whoever asks again after a failure is computed anew; those who asked together learn of the failure together."""
    repository.add("cached", moody(gate), CACHED + gate.config)
    with serving(repository.root) as gateway:
        calls = [start(gateway, "cached", POISON) for _ in range(3)]
        eventually(gate.begun)
        arrived(gateway)
        gate.open()
        messages = {call.details() for call in calls if call.code() is Code.INTERNAL}
        assert len(messages) == 3  # each with an id of its own
        assert all(text.startswith("model 'cached': it failed on this request: internal error") for text in messages)
        assert len(gate.begun()) == 1
        assert start(gateway, "cached", POISON).code() is Code.INTERNAL
        assert len(gate.begun()) == 2


def test_an_answer_gets_too_old(repository: RepositoryBuilder, gate: Gate) -> None:
    """With `response_cache_ttl_s` an answer is used for that long, then the model is asked again."""
    repository.add("cached", gate.files, CACHED + parameter("response_cache_ttl_s", 1.5) + gate.config)
    gate.open()
    with serving(repository.root) as gateway:
        began = time.monotonic()
        while len(gate.begun()) < 2:
            assert values(start(gateway, "cached", 1)) == [1]
        assert 1.5 <= time.monotonic() - began < 60
