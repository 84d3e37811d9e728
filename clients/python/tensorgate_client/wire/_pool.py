# SPDX-License-Identifier: Apache-2.0
"""Where the generated modules register, instead of in protobuf's default descriptor pool."""

from __future__ import annotations

from typing import Any, cast

from google.protobuf import reflection
from google.protobuf.descriptor import Descriptor, FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message

POOL = DescriptorPool()


def build_module(file: FileDescriptor, module: str, namespace: dict[str, Any]) -> None:
    """Put the classes and constants that `file` defines into the namespace of the generated `module`.

    Protobuf's own builder does the same, but in pure-Python protobuf it also registers every class in the
    default pool and so meets the definitions of `tritonclient` there. This one leaves out what our files do
    not use: extensions.
    """
    for name, enum in file.enum_types_by_name.items():
        namespace[f"_{name.upper()}"] = enum
        namespace[name] = EnumTypeWrapper(enum)
        for value in enum.values:
            namespace[value.name] = value.number
    for name, service in file.services_by_name.items():
        namespace[f"_{name.upper()}"] = service
    for name, message in file.message_types_by_name.items():
        namespace[name] = _message_class(message, module, "")


def _message_class(message: Descriptor, module: str, outer: str) -> type[Message]:
    """Return the class of `message` with those of its nested messages as attributes.

    `module` is the full name of the generated module, where protoc's own code gives the bare one, so that
    top-level messages can be pickled. (A nested one alone cannot: protobuf looks it up in the default pool.)
    """
    qualified = outer + message.name
    members: dict[str, Any] = {
        name: _message_class(nested, module, f"{qualified}.") for name, nested in message.nested_types_by_name.items()
    }
    members |= {"DESCRIPTOR": message, "__module__": module, "__qualname__": qualified}
    return cast("type[Message]", reflection.GeneratedProtocolMessageType(message.name, (Message,), members))
