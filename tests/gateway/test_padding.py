"""Padding to the sizes a model prefers, and batches as the backend sees them."""

from __future__ import annotations

import re
from math import inf

import numpy as np
import pytest
from support.batching import padded

from backends.base import InvalidInput, LoadError
from gateway.batch import Batch, BatchLayout
from gateway.padding import Padding, stack
from gateway.request import InferenceRequest
from gateway.tensor_rules import TensorRule
from gateway.workspace import Workspace

TENSORS = """
input { name: "ids" data_type: TYPE_INT64 dims: [-1] }
input { name: "mask" data_type: TYPE_INT64 dims: [-1] optional: true }
input { name: "image" data_type: TYPE_FP32 dims: [3, -1, -1] optional: true }
input { name: "flat" data_type: TYPE_FP32 dims: [-1] reshape { shape: [1, -1] } optional: true }
output { name: "tokens" data_type: TYPE_INT64 dims: [-1] }
output { name: "grid" data_type: TYPE_FP32 dims: [-1, -1] }
"""


def config(max_batch_size: int = 8, **parameters: str) -> str:
    """A config.pbtxt with these parameters."""
    lines = [f'parameters {{ key: "{key}" value {{ string_value: "{text}" }} }}' for key, text in parameters.items()]
    return "\n".join([f"max_batch_size: {max_batch_size}", TENSORS, *lines])


def request(*outputs: str, **inputs: np.ndarray) -> InferenceRequest:
    """A request."""
    return InferenceRequest("", inputs, len(next(iter(inputs.values()))), outputs or ("tokens",), deadline=inf)


def ids(rows: int, size: int, value: int = 1) -> np.ndarray:
    """Tokens."""
    return np.full((rows, size), value, np.int64)


def layout(padding: Padding) -> BatchLayout:
    """Of the model above."""
    inputs = TensorRule("ids", "INT64", (-1, -1)), TensorRule("mask", "INT64", (-1, -1))
    images = TensorRule("image", "FP32", (-1, 3, -1, -1)), TensorRule("words", "BYTES", (-1, -1))
    outputs = [TensorRule("tokens", "INT64", (-1, -1), batches=True), TensorRule("grid", "FP32", (-1, -1, -1), None)]
    return BatchLayout({rule.name: rule for rule in (*inputs, *images)}, {rule.name: rule for rule in outputs}, padding)


def run(padding: Padding, *requests: InferenceRequest) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    """What the backend saw, and the answers; it doubles the tokens and counts them in a grid."""
    seen: dict[str, np.ndarray] = {}

    def execute(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.update(inputs)
        x = inputs["ids"]
        return {"tokens": x * 2, "grid": np.repeat(x[:, :, None], x.shape[1], 2).astype(np.float32)}

    return seen, [dict(answer) for answer in Batch(requests, layout(padding)).run(execute, Workspace())]


def test_sizes_are_padded_to_the_next_bucket_and_outputs_cut_back():
    """Texts of 3 and 4 tokens run together as 4, padded with zeros, and each gets as many tokens back as it sent."""
    padding = padded(config(pad="ids[1] tokens[1]: 8 4"))
    seen, answers = run(padding, request(ids=ids(1, 3)), request(ids=ids(2, 4, 5)))
    assert seen["ids"].tolist() == [[1, 1, 1, 0], [5, 5, 5, 5], [5, 5, 5, 5]]
    assert [answer["tokens"].tolist() for answer in answers] == [[[2, 2, 2]], [[10] * 4, [10] * 4]]


@pytest.mark.parametrize(("size", "becomes"), [(1, 4), (4, 4), (5, 8), (8, 8), (9, 9), (0, 4)])
def test_buckets(size, becomes):
    """A size becomes the next declared one; what is larger than all stays as it is."""
    padding = padded(config(pad="ids[1] tokens[1]: 4, 8"))
    seen, answers = run(padding, request(ids=ids(1, size)))
    assert seen["ids"].shape == (1, becomes)
    assert answers[0]["tokens"].shape == (1, size)


def test_requests_share_a_batch_by_their_padded_shape():
    """Which requests may run together depends on the bucket, not on the exact size."""
    padding = padded(config(pad="ids[1] mask[1]: 4 8"))
    shapes = [layout(padding).shape_of(request(ids=ids(1, n), mask=ids(1, n))) for n in (1, 4, 5, 8, 9, 10)]
    assert shapes[0] == shapes[1] != shapes[2] == shapes[3] != shapes[4] != shapes[5]


def test_presence_of_optional_inputs_tells_shapes_apart():
    """A request with an optional input never runs together with one that lacks it."""
    for padding in (Padding(), padded(config(pad="ids[1]: 4"))):
        with_mask = layout(padding).shape_of(request(ids=ids(1, 2), mask=ids(1, 2)))
        assert with_mask != layout(padding).shape_of(request(ids=ids(1, 2)))


def test_several_dimensions_have_buckets_of_their_own():
    """Height and width are padded each by its own rule; dimensions without a rule stay."""
    padding = padded(config(pad="image[2]: 4 8; image[3]: 16;"))
    image = np.ones((1, 3, 5, 7), np.float32)
    seen, _ = run(padding, request(ids=ids(1, 6), image=image))
    assert seen["image"].shape == (1, 3, 8, 16)
    assert seen["ids"].shape == (1, 6)
    assert (seen["image"][:, :, :5, :7] == 1).all()
    assert seen["image"].sum() == image.sum()


def test_both_dimensions_of_an_output_are_cut():
    """An output that has the padded size twice is cut back in both dimensions."""
    padding = padded(config(pad="ids[1] grid[1]: 8; mask[1] grid[2]: 8"))
    _, answers = run(
        padding, request("grid", ids=ids(1, 3), mask=ids(1, 3)), request("grid", ids=ids(1, 5), mask=ids(1, 5))
    )
    assert [answer["grid"].shape for answer in answers] == [(1, 3, 3), (1, 5, 5)]


def test_outputs_that_are_not_named_stay_padded():
    """Only outputs that the rule names are cut."""
    padding = padded(config(pad="ids[1] grid[1]: 8"))
    _, answers = run(padding, request("tokens", "grid", ids=ids(1, 3)))
    assert answers[0]["tokens"].shape == (1, 8)
    assert answers[0]["grid"].shape == (1, 3, 8)


def test_outputs_without_the_padded_size_are_left_alone():
    """An output whose size the model itself chose, say a fixed one, keeps it."""
    padding = padded(config(pad="ids[1] tokens[1]: 8"))
    batch = Batch([request(ids=ids(1, 3))], layout(padding))
    assert batch.run(lambda _: {"tokens": ids(1, 5)}, Workspace())[0]["tokens"].shape == (1, 5)


def test_output_of_a_request_without_the_padded_input_is_left_alone():
    """Where the padded inputs are optional and were not sent, nothing was padded, so nothing is cut."""
    padding = padded(config(pad="mask[1] tokens[1]: 8"))
    _, answers = run(padding, request(ids=ids(1, 8)))
    assert answers[0]["tokens"].shape == (1, 8)


def test_texts_are_padded_with_empty_ones():
    """BYTES are filled up with empty strings."""
    stacked = np.empty((3, 3), object)
    stack([np.array([[b"a", b"b"]], object), np.array([[b"c"]], object)], stacked)
    assert stacked.tolist() == [[b"a", b"b", b""], [b"c", b"", b""], [b"c", b"", b""]]


def test_a_lone_array_that_fits_is_not_copied():
    """A lone request's array is handed over as it is."""
    only = request(ids=ids(2, 3))
    seen, _ = run(padded(config(batch_sizes="2 8")), only)
    assert seen["ids"] is only.inputs["ids"]


@pytest.mark.parametrize(("rows", "becomes"), [(1, 1), (2, 4), (4, 4), (5, 8)])
def test_batches_are_filled_up_to_the_declared_sizes(rows, becomes):
    """batch_sizes: the model only ever runs with those; the last row is repeated, and nobody gets to see it."""
    padding = padded(config(batch_sizes="8 1 4"))
    requests = [request(ids=ids(1, 2, value)) for value in range(1, rows + 1)]
    seen, answers = run(padding, *requests)
    assert seen["ids"].tolist() == [[value, value] for value in [*range(1, rows + 1), *[rows] * (becomes - rows)]]
    assert [answer["tokens"].tolist() for answer in answers] == [[[2 * v, 2 * v]] for v in range(1, rows + 1)]


def test_rows_count_without_padding():
    """Statistics count what clients sent."""
    assert Batch([request(ids=ids(3, 2))], layout(padded(config(batch_sizes="8")))).rows == 3


def test_backend_that_ignores_the_padded_rows_is_caught():
    """A model that gives fewer rows than it got is at fault, also where the client would not have noticed."""
    batch = Batch([request(ids=ids(1, 2))], layout(padded(config(batch_sizes="8"))))
    with pytest.raises(ValueError, match="output 'tokens': expected 8 rows, the backend gave 1"):
        batch.run(lambda _: {"tokens": ids(1, 2)}, Workspace())


def test_inputs_that_should_agree_in_size():
    """A mask of another length than its text is the caller's mistake, and the message has both sizes."""
    padding = padded(config(pad="ids[1] mask[1]: 4 8"))
    with pytest.raises(InvalidInput, match=r"^inputs differ in a size that is one and the same: 'ids' 3, 'mask' 4$"):
        layout(padding).shape_of(request(ids=ids(1, 3), mask=ids(1, 4)))


SHOWN = "expected 'INPUT[DIM] ...: SIZE ...', as 'ids[1] mask[1]: 32 64', got "


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"pad": "ids: 4"}, f"'pad': {SHOWN}'ids: 4'"),
        ({"pad": "ids[1]"}, f"'pad': {SHOWN}'ids[1]'"),
        ({"pad": "ids[1]: 4 x"}, f"'pad': {SHOWN}'ids[1]: 4 x'"),
        ({"pad": "ids[1]: -4"}, f"'pad': {SHOWN}'ids[1]: -4'"),
        ({"pad": "ids[1]: 4; nonsense"}, f"'pad': {SHOWN}'nonsense'"),
        ({"pad": "ids[1]: 0 4"}, "'pad': expected sizes from 1 to 16777216, as '1 8 32', got '0 4'"),
        ({"pad": "ids[1]: ,"}, "'pad': expected sizes from 1 to 16777216, as '1 8 32', got ','"),
        ({"pad": "words[1]: 4"}, "'pad': the model has no input or output 'words'"),
        ({"pad": "tokens[1]: 4"}, "'pad': 'tokens[1]: 4' names no input"),
        ({"pad": "ids[0]: 4"}, "'pad': ids[0] is no open dimension of 'ids' (0 is the batch)"),
        ({"pad": "ids[2]: 4"}, "'pad': ids[2] is no open dimension of 'ids' (0 is the batch)"),
        ({"pad": "image[1]: 4"}, "'pad': image[1] is no open dimension of 'image' (0 is the batch)"),
        ({"pad": "flat[1]: 4"}, "'pad': flat[1] is no open dimension of 'flat' (0 is the batch)"),
        ({"batch_sizes": "1 x"}, "'batch_sizes': expected sizes from 1 to 16777216, as '1 8 32', got '1 x'"),
        ({"batch_sizes": ""}, "'batch_sizes': expected sizes from 1 to 16777216, as '1 8 32', got ''"),
        ({"batch_sizes": "0"}, "'batch_sizes': expected sizes from 1 to 16777216, as '1 8 32', got '0'"),
        ({"batch_sizes": "1 4"}, "'batch_sizes': the largest is 4, below max_batch_size 8"),
    ],
)
def test_parameters_that_do_not_hold_are_named(parameters, message):
    """A mistake in `pad` or `batch_sizes` keeps the model from loading, and the reason shows what to write."""
    with pytest.raises(LoadError, match=f"^parameter {re.escape(message)}$"):
        padded(config(**parameters))


@pytest.mark.parametrize("parameters", [{"pad": "ids[1]: 4"}, {"batch_sizes": "1 8"}])
def test_model_that_does_not_batch_cannot_be_padded(parameters):
    """Padding beside max_batch_size 0 is a contradiction that the owner is told of."""
    with pytest.raises(LoadError, match=r"the model does not batch \(max_batch_size: 0\)"):
        padded(config(0, **parameters))


def test_reshaped_input_is_padded_as_the_runtime_sees_it():
    """With `reshape`, the dimension counted is that of the runtime's shape."""
    (axis,) = padded(config(pad="flat[2] ids[1]: 4")).axes
    assert axis.inputs == {"flat": 2, "ids": 1}


def test_nothing_is_padded_where_nothing_is_said():
    """Without the parameters, arrays reach the model untouched."""
    assert padded(config()) == Padding()
    assert padded(config(pad=" ; ")) == Padding()
