"""The protocol we define is the public one."""

import subprocess
import sys
from pathlib import Path

DESCRIBE = Path(__file__).with_name("describe_wire.py")

OUR_MODULES = ("tensorgate_client.wire.inference_pb2", "tensorgate_client.wire.model_config_pb2")
THEIR_MODULES = ("tritonclient.grpc.service_pb2", "tritonclient.grpc.model_config_pb2")


def describe(python: Path, *modules: str) -> set[str]:
    """Return the facts about generated modules, as the given interpreter sees them."""
    command = [str(python), str(DESCRIBE), *modules]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.splitlines())


def test_descriptors_equal_those_of_tritonclient(tritonclient_python: Path) -> None:
    """A client of the public protocol finds every message, field and call it knows, under the same number."""
    ours = describe(Path(sys.executable), *OUR_MODULES)
    theirs = describe(tritonclient_python, *THEIR_MODULES)

    assert len(theirs) > 400, f"only {len(theirs)} facts about tritonclient: comparing them says nothing"
    differences = [
        *(f"missing in protos/: {fact}" for fact in sorted(theirs - ours)),
        *(f"only in protos/: {fact}" for fact in sorted(ours - theirs)),
    ]
    assert not differences, "\n".join(differences)
