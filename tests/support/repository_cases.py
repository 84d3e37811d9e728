"""Model folders, good and bad, for the tests of the repository."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from support.models import onnx_identity


@dataclass(frozen=True)
class Case:
    """A model folder; `reason` is what a bad one has to say of itself."""

    config: str = ""
    files: Mapping[str, bytes | str] = field(default_factory=dict)
    versions: tuple[int, ...] = (1,)
    reason: str = ""


def python(inputs: str, outputs: str, execute: str, more: str = "") -> dict[str, bytes | str]:
    """A model.py; empty declarations are left out."""
    declared = f"    inputs = {inputs}\n    outputs = {outputs}\n" if inputs else ""
    body = "\n        ".join(execute.splitlines())
    head = f"import numpy as np\n\nclass Model:\n{declared}{more}"
    return {"model.py": f"{head}    def execute(self, inputs):\n        {body}\n"}


ONNX: dict[str, bytes | str] = {"model.onnx": onnx_identity()}
_OPEN: dict[str, bytes | str] = {"model.onnx": onnx_identity(shape=("batch", "width"))}
_FIXED: dict[str, bytes | str] = {"model.onnx": onnx_identity(shape=(2, 4))}
_TWO = python(
    '[("a", "float32", (-1, 1)), ("b", "float32", (-1, 1))]',
    '[("y", "float32", (-1, 1))]',
    'return {"y": inputs["a"]}',
)
_SEEN = python(
    "",
    "",
    'rows, *rest = inputs["x"].shape\nreturn {"y": inputs["x"], "seen": np.array([[rows, *rest]] * rows)}',
)
_MEETING = python(
    '[("x", "float32", (-1, 1))]',
    '[("y", "float32", (-1, 1))]',
    'return {"y": inputs["x"] + (Model.meeting.wait(60) >= 0)}',
    "    import threading\n    meeting = threading.Barrier(2)\n",
)
_FACTOR = python(
    '[("x", "float32", (-1, 1)), ("factor", "float32", (-1, 1))]',
    '[("y", "float32", (-1, 1))]',
    'return {"y": inputs["x"] * inputs.get("factor", 1)}',
)
_PARAMETER = python(
    '[("x", "float32", (-1, 1))]',
    '[("y", "float32", (-1, 1))]',
    'return {"y": inputs["x"] * self.value}',
    '    def load(self, source):\n        self.value = np.float32(source.parameters["answer"])\n',
)


def tensor(kind: str, name: str, dims: str, more: str = "", data_type: str = "TYPE_FP32") -> str:
    """An input or output as config.pbtxt spells it."""
    return f'{kind} {{ name: "{name}" data_type: {data_type} dims: {dims} {more} }}\n'


def _reshape(dims: str, shape: str, rank: int) -> str:
    pair = "".join(tensor(kind, name, dims, f"reshape {{ shape: {shape} }}") for kind, name in _XY)
    return f"max_batch_size: 8\n{pair}" + tensor("output", "seen", f"[{rank}]", data_type="TYPE_INT64")


_XY = (("input", "x"), ("output", "y"))
_ECHO = 'backend: "echo"\n'

GOOD = {
    "onnx": Case(files=ONNX),
    "python": Case(
        files=python(
            '[("text", object, (-1, 1))]',
            '[("length", "int64", (-1, 1))]',
            'return {"length": np.array([[len(row[0])] for row in inputs["text"]])}',
        )
    ),
    "narrowed": Case("max_batch_size: 2\n" + tensor("input", "x", "[4]"), _OPEN),
    "outputs_only": Case(tensor("output", "y", "[-1, 4]"), ONNX),
    "unbatched": Case("max_batch_size: 0", ONNX),
    "mentions_batch": Case('parameters { key: "note" value { string_value: "max_batch_size: 0" } }', ONNX),
    "reshape_scalar": Case(_reshape("[1]", "[]", 1), _SEEN),
    "reshape_open": Case(_reshape("[6, -1]", "[2, -1, 3]", 4), _SEEN),
    "reshape_both": Case(_reshape("[4]", "[2, 2]", 3), _SEEN),
    "optional": Case(
        "max_batch_size: 8\n"
        + tensor("input", "x", "[1]")
        + tensor("input", "factor", "[1]", "optional: true")
        + tensor("output", "y", "[1]"),
        _FACTOR,
    ),
    "triton_onnx_platform": Case('platform: "onnxruntime_onnx"', ONNX),
    "triton_identity": Case('backend: "identity"'),
    "other_filename": Case(
        'backend: "onnxruntime" default_model_filename: "net.onnx"', {"net.onnx": ONNX["model.onnx"], "model.onnx": b""}
    ),
    "only_filename": Case('default_model_filename: "net.onnx"', {"net.onnx": ONNX["model.onnx"]}),
    "policy_default": Case(_ECHO, versions=(1, 2, 3)),
    "policy_latest": Case(_ECHO + "version_policy { latest { num_versions: 2 } }", versions=(1, 2, 3)),
    "policy_all": Case(_ECHO + "version_policy { all {} }", versions=(1, 2, 3)),
    "policy_specific": Case(_ECHO + "version_policy { specific { versions: [7, 1] } }", versions=(1, 2)),
    "meeting": Case("max_batch_size: 1 instance_group { count: 2 }", _MEETING),  # or they might meet in one batch
    "parameters": Case('parameters { key: "answer" value { string_value: "42" } }', _PARAMETER),
}


def _bad_tensors(batch: str, x: str, more: str = "") -> str:
    return f"{batch}\n{x}{tensor('output', 'y', '[4]')}{more}"


BAD = {
    "corrupt": Case(files={"model.onnx": b"junk"}, reason="model.onnx: "),
    "no_file": Case(files={"weights.bin": b""}, reason="no model file: expected one of model.onnx, "),
    "wrong_file": Case('backend: "onnxruntime"', {"a.onnx": b""}, reason="expected model.onnx, found a.onnx"),
    "two_files": Case(files={**ONNX, "model.py": ""}, reason="say backend: 'onnxruntime' or 'python' in config.pbtxt"),
    "raises": Case(files={"model.py": "open('nosuch')"}, reason="model.py line 1 does not import: FileNotFoundError"),
    "bad_import": Case(files={"model.py": "from json import nosuch"}, reason="cannot import name 'nosuch' from 'json'"),
    "garbled": Case("max_batch_size: many", ONNX, reason="config.pbtxt: 1:17 : 'max_batch_size: many'"),
    "misspelt": Case("max_batchsize: 1", ONNX, reason='has no field named "max_batchsize"'),
    "other_name": Case('name: "onnx"', ONNX, reason="name is 'onnx', the folder is 'other_name'"),
    "unknown_backend": Case('backend: "caffe"', ONNX, reason="unknown backend 'caffe': expected one of onnxruntime, "),
    "dtype": Case(
        _bad_tensors("max_batch_size: 8", tensor("input", "x", "[4]", data_type="TYPE_INT32")),
        ONNX,
        reason="config.pbtxt: input 'x' is INT32, FP32 in the model: say data_type: TYPE_FP32",
    ),
    "dims": Case(
        _bad_tensors("max_batch_size: 8", tensor("input", "x", "[5]")),
        ONNX,
        reason="config.pbtxt: input 'x' is [-1,5], [-1,4] in the model: say dims: [4]",
    ),
    "wider": Case(
        _bad_tensors("max_batch_size: 8", tensor("input", "x", "[-1]")), ONNX, reason="[-1,-1], [-1,4] in the model"
    ),
    "forgotten_batch": Case(
        _bad_tensors("", tensor("input", "x", "[4]")),
        ONNX,
        reason="the first is the batch dimension, add max_batch_size: 32",
    ),
    "fixed_batch": Case(
        "max_batch_size: 8",
        _FIXED,
        reason="the first dimension of 'x' [2,4] is fixed; say max_batch_size: 0",
    ),
    "missing_input": Case(
        "max_batch_size: 8\n" + tensor("input", "a", "[1]"),
        _TWO,
        reason="also has input 'b': declare all inputs or none",
    ),
    "unknown_input": Case(
        "max_batch_size: 8\n" + tensor("input", "z", "[4]"), ONNX, reason="the model has no input 'z': expected 'x'"
    ),
    "unknown_output": Case(
        "max_batch_size: 8\n" + tensor("output", "z", "[4]"), ONNX, reason="the model has no output 'z': expected 'y'"
    ),
    "twice": Case(tensor("input", "x", "[4]") * 2, ONNX, reason="input name 'x' is taken twice"),
    "no_type": Case('input { name: "x" dims: [4] }', ONNX, reason="input 'x' has no data_type"),
    "zero_dims": Case(tensor("input", "x", "[0]"), ONNX, reason="input 'x' dims [0]: expected sizes above 0 or -1"),
    "bad_reshape": Case(
        tensor("input", "x", "[4]", "reshape { shape: [3] }"), ONNX, reason="cannot reshape [4] to [3]: the number"
    ),
    "negative_reshape": Case(
        tensor("input", "x", "[4]", "reshape { shape: [-2, -2] }"), ONNX, reason="input 'x' reshape [-2,-2]: expected"
    ),
    "negative_batch": Case("max_batch_size: -1", ONNX, reason="max_batch_size is -1, expected 0 or more"),
    "ensemble": Case('platform: "ensemble" ensemble_scheduling { }', reason="not supported: ensemble_scheduling"),
    "passive": Case("instance_group { passive: true }", ONNX, reason="not supported: instance_group.passive"),
    "profile": Case('instance_group { profile: "1" }', ONNX, reason="not supported: instance_group.profile"),
    "secondary": Case(
        "instance_group { secondary_devices { device_id: 0 } }",
        ONNX,
        reason="not supported: instance_group.secondary_devices",
    ),
    "sequence": Case("sequence_batching { }", ONNX, reason="not supported: sequence_batching"),
    "decoupled": Case(
        "model_transaction_policy { decoupled: true }", ONNX, reason="not supported: model_transaction_policy"
    ),
    "ragged": Case(
        tensor("input", "x", "[4]", "allow_ragged_batch: true"), ONNX, reason="not supported: input.allow_ragged_batch"
    ),
    "negative_count": Case("instance_group { count: -1 }", ONNX, reason="count is -1, expected 1 or more"),
}
