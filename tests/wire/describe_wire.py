"""Print what generated modules define, one fact a line: `describe_wire.py MODULE...`.

Run by test_contract.py in the environment that holds the modules. File names, file options and comments are
left out, because nothing on the wire depends on them.
"""

import importlib
import sys
from collections.abc import Iterator

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    ServiceDescriptorProto,
)


def field_fact(owner: str, message: DescriptorProto, field: FieldDescriptorProto) -> str:
    """Describe one field: number, label, type, oneof, presence and options such as packing."""
    label = FieldDescriptorProto.Label.Name(field.label)
    kind = field.type_name or FieldDescriptorProto.Type.Name(field.type)
    oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else "-"
    options = str(field.options).strip() or "-"
    presence = "explicit" if field.proto3_optional else "implicit"
    traits = f"{label} {kind}, oneof {oneof}, {presence} presence, options {options}"
    return f"field {owner}.{field.name} = {field.number}: {traits}"


def enum_facts(owner: str, enum: EnumDescriptorProto) -> Iterator[str]:
    """Describe one enum and its values."""
    name = f"{owner}.{enum.name}"
    yield f"enum {name}"
    yield from (f"enum value {name}.{value.name} = {value.number}" for value in enum.value)


def message_facts(owner: str, message: DescriptorProto) -> Iterator[str]:
    """Describe one message with everything nested in it."""
    name = f"{owner}.{message.name}"
    yield f"message {name} map_entry {message.options.map_entry}"
    yield from (f"oneof {name}.{oneof.name}" for oneof in message.oneof_decl)
    yield from (field_fact(name, message, field) for field in message.field)
    for enum in message.enum_type:
        yield from enum_facts(name, enum)
    for nested in message.nested_type:
        yield from message_facts(name, nested)


def service_facts(owner: str, service: ServiceDescriptorProto) -> Iterator[str]:
    """Describe one service and its calls."""
    name = f"{owner}.{service.name}"
    yield f"service {name}"
    for method in service.method:
        request = f"stream {method.input_type}" if method.client_streaming else method.input_type
        response = f"stream {method.output_type}" if method.server_streaming else method.output_type
        yield f"rpc {name}.{method.name}({request}) returns ({response})"


def file_facts(file: FileDescriptorProto) -> Iterator[str]:
    """Describe everything one file defines."""
    yield f"syntax {file.syntax}"
    for enum in file.enum_type:
        yield from enum_facts(file.package, enum)
    for message in file.message_type:
        yield from message_facts(file.package, message)
    for service in file.service:
        yield from service_facts(file.package, service)


def main() -> None:
    """Print the facts of every module named on the command line."""
    for module in sys.argv[1:]:
        file = FileDescriptorProto()
        importlib.import_module(module).DESCRIPTOR.CopyToProto(file)
        for fact in file_facts(file):
            print(fact)  # noqa: T201 - the script's output


if __name__ == "__main__":
    main()
