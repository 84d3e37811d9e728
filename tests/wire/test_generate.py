"""The committed stubs are the ones that the .proto files give."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "protos" / "generate.py"
WIRE = ROOT / "clients" / "python" / "tensorgate_client" / "wire"
HAND_WRITTEN = {"__init__.py", "_pool.py"}


def generated_files(folder: Path) -> dict[str, bytes]:
    """Return name and content of the generated files in a folder."""
    files = (path for path in folder.iterdir() if path.suffix in {".py", ".pyi"})
    return {path.name: path.read_bytes() for path in files if path.name not in HAND_WRITTEN}


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return protos/generate.py as a module; protos/ is no package."""
    spec = importlib.util.spec_from_file_location("generate_wire", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_regenerating_changes_nothing(tmp_path: Path) -> None:
    """Someone who regenerates the stubs sees no difference to what the repository holds."""
    command = [sys.executable, str(SCRIPT), "--output", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr

    committed, fresh = generated_files(WIRE), generated_files(tmp_path)
    stale = sorted(name for name in committed | fresh if committed.get(name) != fresh.get(name))
    assert not stale, f"stale in {WIRE}: {', '.join(stale)}; run: python protos/generate.py"


def test_unexpected_output_of_protoc_is_refused(generate: ModuleType) -> None:
    """A developer whose protoc writes other code gets a message naming the file and what was expected."""
    with pytest.raises(generate.GenerateError, match=r"inference_pb2\.py.*descriptor_pool.*0 times"):
        generate.rewrite("import something_else\n", generate.REWRITES["inference_pb2.py"], "inference_pb2.py")


def test_other_tool_versions_are_refused(generate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer with another grpcio-tools is told which one to install, before committing its output."""
    monkeypatch.setattr(generate, "TOOLS", {"grpcio-tools": "0.1"})
    with pytest.raises(generate.GenerateError, match=r"pip install 'grpcio-tools==0\.1\.\*'"):
        generate.check_tools()
