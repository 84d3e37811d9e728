"""config.pbtxt: read it, check that the gateway can honour it, and complete it from the loaded model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format, text_format

from backends.base import UNBOUNDED, LoadError, Signature, TensorSpec
from gateway import parameters
from tensorgate_client.tensors import DTYPES, datatype_of, shown
from tensorgate_client.wire import model_config_pb2 as pb

Tensor = pb.ModelInput | pb.ModelOutput

_UNSTATED = -(2**31)


@dataclass(frozen=True, slots=True)
class Declared:
    """What a model's owner wrote.

    Attributes:
        proto: the configuration as written.
        states_batch: whether it says `max_batch_size`; proto3 cannot tell an explicit 0 from silence.
        origin: where it was written, for messages.
    """

    proto: pb.ModelConfig
    states_batch: bool = False
    origin: str = "config.pbtxt"

    @property
    def signature(self) -> Signature:
        """The declared tensors as the backend sees them: with the batch dimension, after `reshape`."""
        batch = self.proto.max_batch_size
        return Signature(
            tuple(_declared_spec(tensor, batch) for tensor in self.proto.input),
            tuple(_declared_spec(tensor, batch) for tensor in self.proto.output),
            batch,
        )

    @property
    def preferred_batch_sizes(self) -> tuple[int, ...]:
        """Rows that batches will mostly have, ascending.

        Raises:
            LoadError: the parameter `batch_sizes` does not hold.
        """
        preferred = self.proto.dynamic_batching.preferred_batch_size
        return tuple(sorted({*preferred, *parameters.batch_sizes(self.proto)}))

    @property
    def backend_parameters(self) -> dict[str, str]:
        """The `parameters` as plain strings, without the gateway's own."""
        return {key: value.string_value for key, value in self.proto.parameters.items() if key not in parameters.OWN}


def parse_text(text: str) -> Declared:
    """Read the text of a config.pbtxt.

    Raises:
        LoadError: it does not parse; the message has line and column.
    """
    try:
        proto = text_format.Parse(text, pb.ModelConfig())
    except text_format.ParseError as error:
        raise LoadError(f"config.pbtxt: {error}") from error
    probe = text_format.Merge(text, pb.ModelConfig(max_batch_size=_UNSTATED))
    return Declared(proto, probe.max_batch_size != _UNSTATED)


def parse_json(text: str) -> Declared:
    """Read a configuration sent as JSON, the `config` parameter of RepositoryModelLoad.

    Raises:
        LoadError: it does not parse.
    """
    try:
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise LoadError(f'{_PARAMETER}: expected a JSON object, as {{"max_batch_size": 8}}')
        proto = json_format.ParseDict(fields, pb.ModelConfig())
    except (ValueError, json_format.ParseError) as error:
        raise LoadError(f"{_PARAMETER}: {' '.join(str(error).split())}") from error
    return Declared(proto, "max_batch_size" in fields or "maxBatchSize" in fields, _PARAMETER)


_PARAMETER = "config parameter"


def check(declared: Declared, name: str) -> None:
    """Refuse what would change the model's meaning if it were ignored.

    Raises:
        LoadError: naming the field and what to do about it.
    """
    with _blaming(declared):
        _check(declared.proto, name)


@contextmanager
def _blaming(declared: Declared) -> Iterator[None]:
    """Say where the faulty configuration was written."""
    try:
        yield
    except LoadError as error:
        raise LoadError(f"{declared.origin}: {error}") from error


def _check(config: pb.ModelConfig, name: str) -> None:
    if config.name and config.name != name:
        raise LoadError(f"name is '{config.name}', the folder is '{name}': make them equal or leave name out")
    if config.max_batch_size < 0:
        raise LoadError(f"max_batch_size is {config.max_batch_size}, expected 0 or more")
    unsupported = [field for field, used in _unsupported(config) if used]
    if unsupported:
        raise LoadError(f"not supported: {', '.join(unsupported)}")
    for group in config.instance_group:
        _check_group(group)
    for kind, tensors in (("input", config.input), ("output", config.output)):
        _check_tensors(kind, tensors)


def _check_group(group: pb.ModelInstanceGroup) -> None:
    kind = pb.ModelInstanceGroup.Kind.Name(group.kind)
    if group.count < 0:
        raise LoadError(f"instance_group count is {group.count}, expected 1 or more")
    if group.gpus and kind not in ("KIND_GPU", "KIND_AUTO"):
        raise LoadError(f"instance_group {kind} has gpus {shown(group.gpus)}: say KIND_GPU, or leave gpus out")
    if len(set(group.gpus)) < len(group.gpus) or any(number < 0 for number in group.gpus):
        raise LoadError(f"instance_group gpus {shown(group.gpus)}: expected numbers from 0, each once")


def _unsupported(config: pb.ModelConfig) -> Iterable[tuple[str, bool]]:
    yield "ensemble_scheduling", config.HasField("ensemble_scheduling") or config.platform == "ensemble"
    yield "sequence_batching", config.HasField("sequence_batching")
    yield "model_transaction_policy { decoupled: true }", config.model_transaction_policy.decoupled
    yield "model_repository_agents", config.HasField("model_repository_agents")
    yield "batch_input", bool(config.batch_input)
    yield "batch_output", bool(config.batch_output)
    yield "model_operations", config.HasField("model_operations")
    yield "input.allow_ragged_batch", any(tensor.allow_ragged_batch for tensor in config.input)
    for name in ("passive", "secondary_devices", "profile"):
        yield f"instance_group.{name}", any(getattr(group, name) for group in config.instance_group)
    yield (
        "is_shape_tensor",
        any(t.is_shape_tensor for t in config.input) or any(t.is_shape_tensor for t in config.output),
    )


def _check_tensors(kind: str, tensors: Iterable[Tensor]) -> None:
    names: set[str] = set()
    for tensor in tensors:
        if not tensor.name or tensor.name in names:
            raise LoadError(f"{kind} name '{tensor.name}' is {'missing' if not tensor.name else 'taken twice'}")
        names.add(tensor.name)
        if tensor.data_type == pb.TYPE_INVALID:
            raise LoadError(f"{kind} '{tensor.name}' has no data_type, expected one such as TYPE_FP32")
        for field, sizes in (("dims", tensor.dims), ("reshape", tensor.reshape.shape)):
            if any(size < 1 and size != -1 for size in sizes):
                raise LoadError(f"{kind} '{tensor.name}' {field} {shown(sizes)}: expected sizes above 0 or -1 (any)")
        if tensor.HasField("reshape") and _fixed(tensor.dims) != _fixed(tensor.reshape.shape):
            raise LoadError(
                f"{kind} '{tensor.name}' cannot reshape {shown(tensor.dims)} "
                f"to {shown(tensor.reshape.shape)}: the number of elements differs"
            )


def _fixed(dims: Iterable[int]) -> tuple[int, int]:
    """How many elements the known sizes make, and how many sizes are open: what a reshape has to keep."""
    product, unknown = 1, 0
    for size in dims:
        product, unknown = (product, unknown + 1) if size == -1 else (product * size, unknown)
    return product, unknown


def complete(declared: Declared, signature: Signature, default_max_batch_size: int) -> pb.ModelConfig:
    """The configuration with everything the owner left out, as the loaded model has it.

    Args:
        declared: what the owner wrote.
        signature: what the backend read from the model file.
        default_max_batch_size: rows, for a batching model that names no limit.

    Raises:
        LoadError: the two contradict each other; the message says which line to change.
    """
    with _blaming(declared):
        return _complete(declared, signature, default_max_batch_size)


def _complete(declared: Declared, signature: Signature, default_max_batch_size: int) -> pb.ModelConfig:
    config = pb.ModelConfig()
    config.CopyFrom(declared.proto)
    signature = _batched(config, signature)
    config.max_batch_size = _batch_size(declared, signature, default_max_batch_size)
    if config.max_batch_size:
        _complete_batch_sizes(config, signature.batch_sizes)
    _complete_tensors("input", config.input, signature.inputs, config.max_batch_size)
    _complete_tensors("output", config.output, signature.outputs, config.max_batch_size)
    missing = {spec.name for spec in signature.inputs} - {tensor.name for tensor in config.input}
    if missing:
        raise LoadError(f"the model also has input {_quoted(missing)}: declare all inputs or none")
    return config


def _batched(config: pb.ModelConfig, signature: Signature) -> Signature:
    """The signature as the batcher makes it: it fills up the batches of a model that was built for a fixed size."""
    sizes = parameters.batch_sizes(config)
    first = {spec.shape[:1] for spec in (*signature.inputs, *signature.outputs)}
    if signature.max_batch_size or not sizes or len(first) != 1 or (fixed := first.pop()) in ((), (-1,)):
        return signature
    if sizes != fixed:
        raise LoadError(f"parameter 'batch_sizes': the model was built for {fixed[0]} rows: say '{fixed[0]}'")
    return signature.batched(sizes)


def _batch_size(declared: Declared, signature: Signature, default: int) -> int:
    if not declared.states_batch:
        if declared.proto.input or declared.proto.output:
            return 0
        return default if signature.max_batch_size == UNBOUNDED else signature.max_batch_size
    size = declared.proto.max_batch_size
    if size and not signature.max_batch_size:
        fixed = (s for s in (*signature.inputs, *signature.outputs) if s.shape[:1] != (-1,))
        why = next((f": the first dimension of '{s.name}' {shown(s.shape)} is fixed" for s in fixed), "")
        raise LoadError(f"max_batch_size is {size}, but the model does not batch{why}; say max_batch_size: 0")
    if size > signature.max_batch_size > 0:
        raise LoadError(f"max_batch_size is {size}, but the model was built for at most {signature.max_batch_size}")
    return size


def _complete_batch_sizes(config: pb.ModelConfig, known: Sequence[int]) -> None:
    """Fill in the numbers of rows that the model executes, or check those that the owner chose of them."""
    if not known:
        return
    sizes, shown_sizes = parameters.batch_sizes(config), " ".join(map(str, known))
    if not set(sizes) <= set(known):
        raise LoadError(f"parameter 'batch_sizes': the model executes {shown_sizes} rows: choose of these")
    if not sizes:
        config.parameters[parameters.BATCH_SIZES].string_value = shown_sizes


def _complete_tensors(kind: str, tensors: Any, specs: Sequence[TensorSpec], batch: int) -> None:
    """Fill `tensors` from the model's specs, or check those that the owner declared against them."""
    if not tensors:
        for name, dtype, shape in specs:
            data_type = pb.DataType.Value(f"TYPE_{_config_name(datatype_of(dtype))}")
            tensors.add(name=name, data_type=data_type, dims=shape[1:] if batch else shape)
        return
    known = {spec.name: spec for spec in specs}
    for tensor in tensors:
        spec = known.get(tensor.name)
        if spec is None:
            raise LoadError(f"the model has no {kind} '{tensor.name}': expected {_quoted(known)}")
        wanted, found = _declared_spec(tensor, batch), datatype_of(spec.dtype)
        if datatype_of(wanted.dtype) != found:
            line = f"data_type: TYPE_{_config_name(found)}"
            raise LoadError(f"{kind} '{tensor.name}' is {datatype_of(wanted.dtype)}, {found} in the model: say {line}")
        if not _fits(wanted.shape, spec.shape):
            hint = f"say dims: {shown(spec.shape[1:] if batch else spec.shape)}"
            if not batch and (-1, *wanted.shape) == spec.shape:
                hint = "the first is the batch dimension, add max_batch_size: 32 (or another limit)"
            shapes = f"is {shown(wanted.shape)}, {shown(spec.shape)} in the model"
            raise LoadError(f"{kind} '{tensor.name}' {shapes}: {hint}")


def _fits(wanted: Sequence[int], model: Sequence[int]) -> bool:
    """A declared shape may be narrower than the model's, never wider."""
    return len(wanted) == len(model) and all(m in (-1, w) for w, m in zip(wanted, model, strict=True))


def _declared_spec(tensor: Tensor, batch: int) -> TensorSpec:
    dims = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
    return TensorSpec(tensor.name, DTYPES[wire_datatype(tensor.data_type)], (*((-1,) if batch else ()), *dims))


def wire_datatype(data_type: pb.DataType.ValueType) -> str:
    """The protocol's name ("BYTES") of a configuration's data type (TYPE_STRING)."""
    name = pb.DataType.Name(data_type).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name


def _config_name(datatype: str) -> str:
    return "STRING" if datatype == "BYTES" else datatype


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))
