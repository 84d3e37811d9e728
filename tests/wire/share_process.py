"""Import our wire modules and `tritonclient.grpc` into one process and pass messages between them.

`share_process.py NAME...` imports the modules in the order named, then exchanges messages. Run by
test_shared_process.py in the environment that holds both.
"""

import importlib
import sys

from google.protobuf import json_format, text_format
from google.protobuf.message import Message

INFER_MODULES = ("tensorgate_client.wire.inference_pb2", "tritonclient.grpc.service_pb2")
CONFIG_MODULES = ("tensorgate_client.wire.model_config_pb2", "tritonclient.grpc.model_config_pb2")

REQUEST = r"""
    model_name: "digits" model_version: "3" id: "request-1"
    parameters { key: "priority" value { uint64_param: 18446744073709551615 } }
    inputs { name: "pixels" datatype: "FP32" shape: [ 2, 64 ]
             parameters { key: "scale" value { double_param: 0.5 } } }
    outputs { name: "label" parameters { key: "classification" value { int64_param: 3 } } }
    raw_input_contents: "\x00\x01\x7f\x80\xff"
"""

CONFIG = """
    name: "digits" max_batch_size: 8
    input { name: "pixels" data_type: TYPE_FP32 dims: [ 1, 8, 8 ] }
    dynamic_batching { priority_queue_policy { key: 2 value { max_queue_size: 7 } } }
    parameters { key: "pad_to" value { string_value: "8" } }
"""


def exchange(source: Message, target: Message) -> None:
    """Check that `target`, an empty message of the other package, reads what `source` writes."""
    assert type(source) is not type(target), "both packages use the same class: nothing is being tested"
    target.ParseFromString(source.SerializeToString(deterministic=True))
    assert text_format.MessageToString(target) == text_format.MessageToString(source)
    assert json_format.MessageToDict(target) == json_format.MessageToDict(source)
    assert target.SerializeToString(deterministic=True) == source.SerializeToString(deterministic=True)


def main() -> None:
    """Import the modules named on the command line, then exchange messages both ways."""
    for name in sys.argv[1:]:
        importlib.import_module(name)
    # Imported so, not at the top of the file, because the order of the imports is what is tested.
    infer = [importlib.import_module(name) for name in INFER_MODULES]
    config = [importlib.import_module(name) for name in CONFIG_MODULES]
    for here, there in (infer, infer[::-1]):
        exchange(text_format.Parse(REQUEST, here.ModelInferRequest()), there.ModelInferRequest())
    for here, there in (config, config[::-1]):
        exchange(text_format.Parse(CONFIG, here.ModelConfig()), there.ModelConfig())
    print("exchanged")  # noqa: T201 - the script's output


if __name__ == "__main__":
    main()
