"""Requests with mistakes in them, and the messages that their senders get; the models are those of `faults`."""

from __future__ import annotations

from typing import Any

from support.faults import ROW, Request, X, request, tensor, with_parameter


def output(name: str = "logits") -> Any:
    """A requested output."""
    return Request.InferRequestedOutputTensor(name=name)


def shaped(*shape: int, raw: bytes = ROW) -> Request:
    """A request whose input claims this shape."""
    return request(tensor(shape=shape), raw=[raw])


def pair(rows_a: int, rows_b: int) -> Request:
    """A request to `pair` with so many rows in each input."""
    inputs = tensor("in_a", "FP32", [rows_a, 2]), tensor("in_b", "INT8", [rows_b, 1])
    return request(*inputs, model="pair", raw=[bytes(8 * rows_a), bytes(rows_b)])


def text(raw: bytes, count: int) -> Request:
    """A request to `text` with these raw bytes for so many elements."""
    return request(tensor("in_a", "BYTES", [count]), model="text", raw=[raw])


INPUT = "input 'x' of model 'classifier': "
TEXT = "input 'in_a' of model 'text': "
HUGE = 2**40

INVALID: dict[str, tuple[Request, str]] = {
    "empty request": (Request(), "model_name is empty: name the model to call"),
    "no model name": (request(X, model="", raw=[ROW]), "model_name is empty: name the model to call"),
    "no input": (request(), "model 'classifier' needs input 'x' (FP32 [-1,4]); got none"),
    "missing input": (
        request(tensor("in_a", "FP32", [1, 2]), model="pair", raw=[bytes(8)]),
        "model 'pair' needs input 'in_b' (INT8 [-1,1]); got 'in_a'",
    ),
    "wrong name": (request(tensor("X"), raw=[ROW]), "unknown input 'X' of model 'classifier': expected 'x'"),
    "duplicate input": (request(X, X, raw=[ROW, ROW]), "input 'x' of model 'classifier' came twice"),
    "wrong datatype": (
        request(tensor(datatype="FP64"), raw=[bytes(32)]),
        INPUT + "expected FP32 [-1,4], got FP64 [1,4]",
    ),
    "no datatype": (request(tensor(datatype=""), raw=[ROW]), INPUT + "expected FP32 [-1,4], got no datatype [1,4]"),
    "unheard datatype": (request(tensor(datatype="F"), raw=[ROW]), INPUT + "expected FP32 [-1,4], got F [1,4]"),
    "wrong shape": (shaped(1, 3, raw=bytes(12)), INPUT + "expected FP32 [-1,4], got FP32 [1,3]"),
    "too few dimensions": (shaped(4), INPUT + "expected FP32 [-1,4], got FP32 [4]"),
    "too many dimensions": (shaped(1, 1, 4), INPUT + "expected FP32 [-1,4], got FP32 [1,1,4]"),
    "no shape": (shaped(), INPUT + "expected FP32 [-1,4], got FP32 []"),
    "negative rows": (shaped(-1, 4), INPUT + "expected FP32 [-1,4], got FP32 [-1,4]"),
    "two negatives": (shaped(-1, -4), INPUT + "expected FP32 [-1,4], got FP32 [-1,-4]"),
    "least number": (shaped(-(2**63), 4), INPUT + f"expected FP32 [-1,4], got FP32 [{-(2**63)},4]"),
    "huge": (shaped(HUGE, 4), INPUT + f"FP32 [{HUGE},4] takes {HUGE * 16} bytes of raw contents, got 16"),
    "huge product": (
        request(tensor("in_a", shape=[2**62, 4]), model="open", raw=[b""]),
        f"input 'in_a' of model 'open': FP32 [{2**62},4] takes {2**66} bytes of raw contents, got 0",
    ),
    "huge yet empty": (
        request(tensor("in_a", shape=[0, 2**62]), model="open", raw=[b""]),
        f"input 'in_a' of model 'open': no array has the shape [0,{2**62}]: array is too big; "
        "`arr.size * arr.dtype.itemsize` is larger than the maximum possible size.",
    ),
    "huge typed": (
        request(tensor(shape=[HUGE, 4], fp32_contents=[1])),
        INPUT + f"FP32 [{HUGE},4] takes {HUGE * 4} values in fp32_contents, got 1",
    ),
    "too few bytes": (shaped(1, 4, raw=bytes(15)), INPUT + "FP32 [1,4] takes 16 bytes of raw contents, got 15"),
    "too many bytes": (shaped(1, 4, raw=bytes(17)), INPUT + "FP32 [1,4] takes 16 bytes of raw contents, got 17"),
    "no contents": (request(X), INPUT + "FP32 [1,4] takes 4 values in fp32_contents, got 0"),
    "no rows": (
        shaped(0, 4, raw=b""),
        "model 'classifier': expected 1 to 32 rows (max_batch_size), got 0",
    ),
    "too many rows": (
        shaped(33, 4, raw=bytes(33 * 16)),
        "model 'classifier': expected 1 to 32 rows (max_batch_size), got 33; send them in several requests",
    ),
    "different rows": (pair(2, 3), "model 'pair': inputs differ in their number of rows: 'in_a' 2, 'in_b' 3"),
    "one raw too many": (
        request(X, raw=[ROW, ROW]),
        "model 'classifier': 1 inputs but 2 raw_input_contents: expected one each",
    ),
    "raw without input": (
        request(raw=[ROW]),
        "model 'classifier': 0 inputs but 1 raw_input_contents: expected one each",
    ),
    "raw and typed": (
        request(tensor(fp32_contents=[1] * 4), raw=[ROW]),
        "input 'x' of model 'classifier' has typed contents beside raw_input_contents: send one",
    ),
    "typed in the wrong field": (
        request(tensor(fp64_contents=[1] * 4)),
        INPUT + "FP32 travels in fp32_contents, got fp64_contents",
    ),
    "typed too few": (
        request(tensor(fp32_contents=[1])),
        INPUT + "FP32 [1,4] takes 4 values in fp32_contents, got 1",
    ),
    "typed out of range": (
        request(tensor("in_a", "UINT8", [2], uint_contents=[1, 256]), model="tiny"),
        "input 'in_a' of model 'tiny': uint_contents holds values out of the range of UINT8",
    ),
    "typed FP16": (
        request(tensor("in_a", "FP16", [2], fp32_contents=[1, 2]), model="half"),
        "input 'in_a' of model 'half': FP16 has no typed contents in the protocol: use raw contents",
    ),
    "typed FP16 wanted": (
        with_parameter(
            request(tensor("in_a", "FP16", [2]), model="half", raw=[bytes(4)]), "binary_data_output", bool_param=False
        ),
        "output 'out_a' of model 'half': FP16 has no typed contents in the protocol: "
        "leave out the parameter 'binary_data_output'",
    ),
    "parameter of another type": (
        with_parameter(request(X, raw=[ROW]), "binary_data_output", string_param="true"),
        "model 'classifier': parameter 'binary_data_output': expected bool_param, got string_param",
    ),
    "length beyond the end": (text(b"\5\0\0\0four", 1), TEXT + "BYTES element 0 runs past the end of the 8 raw bytes"),
    "length of 4 GiB": (text(b"\xff\xff\xff\xff", 1), TEXT + "BYTES element 0 runs past the end of the 4 raw bytes"),
    "length cut": (text(b"\0\0\0\0\1\0", 2), TEXT + "BYTES element 1 runs past the end of the 6 raw bytes"),
    "too few texts": (text(bytes(8), HUGE), TEXT + f"BYTES [{HUGE}] takes {HUGE} elements, raw contents hold 2"),
    "too many texts": (text(bytes(12), 2), TEXT + "BYTES [2] takes 2 elements, raw contents hold more"),
    "unknown output": (
        request(X, raw=[ROW], outputs=["logit"]),
        "unknown output 'logit' of model 'classifier': expected 'logits', 'probabilities'",
    ),
    "duplicate output": (
        request(X, raw=[ROW], outputs=["logits", "logits"]),
        "output 'logits' of model 'classifier' is requested twice",
    ),
    "version with letters": (
        request(X, raw=[ROW], model_version="v1"),
        "model 'classifier': version 'v1' is not a number; leave it empty for the latest",
    ),
    "negative version": (
        request(X, raw=[ROW], model_version="-1"),
        "model 'classifier': version '-1' is not a number; leave it empty for the latest",
    ),
    "version in other digits": (
        request(X, raw=[ROW], model_version="\uff11"),
        "model 'classifier': version '\uff11' is not a number; leave it empty for the latest",
    ),
    "refused by the model": (
        request(X, model="refuses", raw=[ROW]),
        "model 'refuses': x: expected values of at most 1, got 7",
    ),
}

UNKNOWN = "Request for unknown model: "
NOT_FOUND: dict[str, tuple[Request, str]] = {
    "unknown model": (request(X, model="nobody", raw=[ROW]), UNKNOWN + "'nobody' is not found"),
    "path": (request(X, model="../classifier", raw=[ROW]), UNKNOWN + "'../classifier' is not found"),
    "not ASCII": (request(X, model="größe 数\n", raw=[ROW]), UNKNOWN + "'größe 数\n' is not found"),
    "unknown version": (
        request(X, model_version="7", raw=[ROW]),
        UNKNOWN + "'classifier' version 7 is not found",
    ),
    "huge version": (
        request(X, model_version="9" * 30, raw=[ROW]),
        UNKNOWN + f"'classifier' version {'9' * 30} is not found",
    ),
    "name of a megabyte": (
        request(X, model="数" * 400_000, raw=[ROW]),
        UNKNOWN + f"'{'数' * 490}... (1200042 bytes)",
    ),
}

SHARED = "this server does not offer shared memory without --allow-shared-memory (parameter 'shared_memory_region')"
NOT_OFFERED: dict[str, tuple[Request, str]] = {
    "input in shared memory": (
        request(with_parameter(tensor(), "shared_memory_region", string_param="r")),
        INPUT + SHARED,
    ),
    "one of two inputs in shared memory": (
        request(
            tensor("in_a", "FP32", [1, 2]),
            with_parameter(tensor("in_b", "INT8", [1, 1]), "shared_memory_region", string_param="r"),
            model="pair",
            raw=[bytes(8)],
        ),
        f"input 'in_b' of model 'pair': {SHARED}",
    ),
    "output in shared memory": (
        request(X, raw=[ROW], outputs=[with_parameter(output(), "shared_memory_region", string_param="r")]),
        f"output 'logits' of model 'classifier': {SHARED}",
    ),
    "classification": (
        request(X, raw=[ROW], outputs=[with_parameter(output(), "classification", int64_param=2)]),
        "output 'logits' of model 'classifier': this server does not offer the classification extension "
        "(parameter 'classification')",
    ),
}
