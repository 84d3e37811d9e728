# SPDX-License-Identifier: Apache-2.0
"""Generate the Python stubs of the wire contract: `python protos/generate.py [--output DIR]`.

protoc writes modules that import each other by bare name and register in protobuf's one default descriptor
pool. A process that also imports `tritonclient.grpc` has another definition of package `inference` there, and
whichever comes second fails. So what protoc wrote is changed in a few places: the modules live in
`tensorgate_client.wire`, and they register in the pool of its `_pool` module.

The tools' versions are pinned because their output differs: code from a newer protoc refuses protobuf 6.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped, unused-ignore]  # comes without annotations

PROTOS = Path(__file__).resolve().parent
WIRE = PROTOS.parent / "clients" / "python" / "tensorgate_client" / "wire"

# Distribution -> the release series whose output is committed. Its patch releases write the same.
TOOLS: Mapping[str, str] = {"grpcio-tools": "1.78", "mypy-protobuf": "5.1"}

# A regular expression that must match exactly once in a generated file, and what replaces the match.
Rewrite = tuple[str, str]


class GenerateError(Exception):
    """The stubs could not be generated; the message says what to do."""


def _pb2_rewrites(module: str) -> tuple[Rewrite, ...]:
    """Return what every message module needs: our pool, our builder, and no trace of the default pool."""
    return (
        (r"^from google\.protobuf import descriptor_pool as _descriptor_pool\n", ""),
        (r"^from google\.protobuf import symbol_database as _symbol_database\n", ""),
        (r"^_sym_db = _symbol_database\.Default\(\)\n\n\n", "from . import _pool\n"),
        (r"_descriptor_pool\.Default\(\)\.AddSerializedFile\(", "_pool.POOL.AddSerializedFile("),
        (
            rf"^_builder\.BuildTopDescriptorsAndMessages\(DESCRIPTOR, '{module}', _globals\)\n",
            "_pool.build_module(DESCRIPTOR, __name__, _globals)\n",
        ),
    )


def _relative_import(module: str, alias: str) -> Rewrite:
    """Return the rewrite that imports a sibling module from this package instead of from the top level."""
    return rf"^import {module} as {alias}\n", f"from . import {module} as {alias}\n"


# The stubs need nothing that grpcio 1.78.0 lacks, so they do not ask for the patch release of the tool.
_GRPC_FLOOR: Rewrite = (
    rf"^GRPC_GENERATED_VERSION = '{re.escape(TOOLS['grpcio-tools'])}\.\d+'\n",
    f"GRPC_GENERATED_VERSION = '{TOOLS['grpcio-tools']}.0'\n",
)

REWRITES: Mapping[str, tuple[Rewrite, ...]] = {
    "inference_pb2.py": (
        *_pb2_rewrites("inference_pb2"),
        _relative_import("model_config_pb2", "model__config__pb2"),
    ),
    "inference_pb2.pyi": (_relative_import("model_config_pb2", "_model_config_pb2"),),
    "inference_pb2_grpc.py": (_relative_import("inference_pb2", "inference__pb2"), _GRPC_FLOOR),
    "inference_pb2_grpc.pyi": (_relative_import("inference_pb2", "_inference_pb2"),),
    "model_config_pb2.py": _pb2_rewrites("model_config_pb2"),
    "model_config_pb2.pyi": (),
}


def check_tools() -> None:
    """Raise GenerateError unless the tools of the pinned release series are installed."""
    wanted = " ".join(f"'{name}=={series}.*'" for name, series in TOOLS.items())
    for name, series in TOOLS.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "none"
        if not found.startswith(f"{series}."):
            raise GenerateError(f"{name} {series}.x is needed, found {found}: pip install {wanted}")


def run_protoc(output: Path) -> None:
    """Write protoc's own output for both files into `output`."""
    scripts = Path(sysconfig.get_path("scripts"))
    plugins = [f"--plugin={name}={scripts / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    messages = [f"--python_out={output}", f"--mypy_out=quiet:{output}"]
    services = [f"--grpc_python_out={output}", f"--mypy_grpc_out=quiet:{output}"]
    for outputs, files in (
        (messages, ["inference.proto", "model_config.proto"]),
        (services, ["inference.proto"]),
    ):
        code = protoc.main(["protoc", f"-I{PROTOS}", *plugins, *outputs, *files])
        if code != 0:
            raise GenerateError(f"protoc failed on {files} with exit status {code}; see its message above")


def rewrite(text: str, rewrites: Sequence[Rewrite], name: str) -> str:
    """Apply every rewrite to the text of file `name`; raise GenerateError where one does not match once."""
    for pattern, replacement in rewrites:
        text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        if count != 1:
            raise GenerateError(f"{name}: protoc's output has /{pattern}/ {count} times, expected it once")
    return text


def generate(output: Path) -> list[Path]:
    """Generate the stubs into the folder `output` and return the files written, sorted."""
    check_tools()
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder)
        run_protoc(raw)
        written = {path.name for path in raw.iterdir()}
        if written != set(REWRITES):
            raise GenerateError(f"protoc wrote {sorted(written)}, expected {sorted(REWRITES)}")
        # Nothing is written before every file came out right, so a failure leaves the old stubs whole.
        texts = {name: rewrite((raw / name).read_text("utf-8"), REWRITES[name], name) for name in sorted(REWRITES)}
    for name, text in texts.items():
        (output / name).write_text(text, encoding="utf-8", newline="\n")
    return [output / name for name in texts]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description="Generate the Python stubs of the wire contract.")
    parser.add_argument("--output", type=Path, default=WIRE, metavar="DIR", help="default: %(default)s")
    try:
        written = generate(parser.parse_args(arguments).output)
    except GenerateError as error:
        print(f"generate.py: {error}", file=sys.stderr)
        return 1
    for path in written:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
