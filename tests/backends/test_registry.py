"""Which backend a model gets."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backends.base import LoadError
from backends.registry import BackendInfo, Registry

LAZY = """
import sys
from pathlib import Path
from backends.base import ModelSource
from backends.registry import Registry

registry = Registry()
file = Path(sys.argv[1])
info = registry.for_files({file.name})
model = registry.backend(info).load(ModelSource("m", 1, file.parent, file))
runtimes = {"torch", "onnxruntime", "tensorrt", "tensorrt_rtx", "pycuda", "ai_edge_litert"}
print(info.name, [i.name for i in registry if i.installed], sorted(runtimes & set(sys.modules)))
"""
MODEL = """
class Model:
    inputs, outputs = [("x", "float32", (-1, 2))], [("y", "float32", (-1, 2))]
    def execute(self, inputs): return {"y": inputs["x"]}
"""


@pytest.fixture
def registry() -> Registry:
    """The backends there are."""
    return Registry()


def plug_in(folder: Path, text: str, name: str = "odd") -> None:
    """Install a distribution with one module and one entry point, as pip leaves it."""
    (folder / "odd_backend.py").write_text(text)
    info = folder / "odd-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[tensorgate.backends]\n{name} = odd_backend:Backend\n")


def test_runtimes_are_imported_at_first_use(tmp_path: Path) -> None:
    """A server that serves only a model.py spends neither time nor memory on torch or onnxruntime."""
    (tmp_path / "model.py").write_text(MODEL)
    command = [sys.executable, "-c", LAZY, str(tmp_path / "model.py")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.stderr == ""
    installed = [info.name for info in Registry() if info.installed]
    assert {"onnxruntime", "torch", "python", "echo"} <= set(installed)
    assert result.stdout == f"python {installed} []\n"


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("onnxruntime", "onnxruntime"),
        ("onnxruntime_onnx", "onnxruntime"),
        ("torch", "torch"),
        ("pytorch", "torch"),
        ("pytorch_libtorch", "torch"),
        ("tensorrt_plan", "tensorrt"),
        ("tflite", "litert"),
        ("python", "python"),
        ("echo", "echo"),
        ("identity", "echo"),
    ],
)
def test_spellings(spelling: str, name: str, registry: Registry) -> None:
    """`backend` and `platform` of a repository written for Triton mean here what they mean there."""
    assert registry.info(spelling).name == name


@pytest.mark.parametrize("spelling", ["tensorflow", "Torch", "tensorrt_onnx"])
def test_unknown_backend(spelling: str, registry: Registry) -> None:
    """A backend that is not there is refused with those that are."""
    with pytest.raises(LoadError) as caught:
        registry.info(spelling)
    assert str(caught.value) == (
        f"unknown backend '{spelling}': expected one of onnxruntime, torch, tensorrt, litert, python, echo, remote"
    )


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"model.onnx"}, "onnxruntime"),
        ({"model.pt2"}, "torch"),
        ({"model.pt"}, "torch"),
        ({"model.pt", "model.pt2", "labels.txt"}, "torch"),
        ({"model.plan"}, "tensorrt"),
        ({"model.tflite"}, "litert"),
        ({"model.py", "helper.py"}, "python"),
    ],
)
def test_files_choose_the_backend(files: set[str], name: str, registry: Registry) -> None:
    """A model file needs no configuration to find its backend."""
    assert registry.for_files(files).name == name


def test_files_for_several_backends(registry: Registry) -> None:
    """Where files fit several backends, the owner is told the line that decides."""
    with pytest.raises(LoadError) as caught:
        registry.for_files({"model.py", "model.onnx", "notes.txt"})
    assert str(caught.value) == (
        "files for several backends (model.onnx, model.py, notes.txt): say backend: 'onnxruntime' or 'python' in "
        "config.pbtxt"
    )


@pytest.mark.parametrize(("files", "found"), [(set(), "nothing"), ({"b.bin", "a.bin"}, "a.bin, b.bin")])
def test_files_for_no_backend(files: set[str], found: str, registry: Registry) -> None:
    """Where no file fits, the owner reads which names would and which were found."""
    with pytest.raises(LoadError) as caught:
        registry.for_files(files)
    expected = "model.onnx, model.pt2, model.pt, model.plan, model.tflite, model.py"
    assert str(caught.value) == f"no model file: expected one of {expected}; found {found}"


def test_a_backend_is_made_once(registry: Registry) -> None:
    """Models of one backend share it."""
    assert registry.backend(registry.info("echo")) is registry.backend(registry.info("identity"))


def test_not_installed() -> None:
    """Whoever lacks a runtime reads the command that installs it."""
    info = BackendInfo("mine", "backends.mine:Backend", runtime="no_such_runtime", extra="mine")
    assert not info.installed
    with pytest.raises(LoadError, match=r"^backend 'mine' is not installed: pip install 'tensorgate\[mine\]'$"):
        info.load()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise OSError('libodd.so.1 is missing')\n", "OSError: libodd.so.1 is missing"),
        ("", "AttributeError: module 'odd_backend' has no attribute 'Backend'"),
        ("def Backend(): return 1 / 0\n", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_plug_in_that_fails(text: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken plug-in is named with its reason when a model asks for it; the other backends work."""
    plug_in(tmp_path, text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_backend", raising=False)
    registry = Registry()
    info = registry.for_files({"model.odd"})
    with pytest.raises(LoadError) as caught:
        registry.backend(info)
    assert str(caught.value) == f"backend 'odd' does not import: {reason}"
    assert registry.backend(registry.info("echo"))


@pytest.mark.parametrize("end", ["class Backend: pass", "raise OSError('libodd.so.1 is missing')"])
def test_models_that_load_at_once(end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models that ask for a backend at the same time share it, or read the same reason why there is none."""
    plug_in(tmp_path, f"import time\ntime.sleep(0.3)\n{end}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_backend", raising=False)
    registry = Registry()
    info = registry.for_files({"model.odd"})

    def ask(_: int) -> object:
        try:
            return registry.backend(info)
        except LoadError as error:
            return str(error)

    with ThreadPoolExecutor() as threads:
        first, second = threads.map(ask, range(2))
    assert first == second
    if end.startswith("raise"):
        assert first == "backend 'odd' does not import: OSError: libodd.so.1 is missing"


def test_a_slow_import_is_not_waited_for_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one backend is being imported, models of the others load."""
    plug_in(tmp_path, "import time\ntime.sleep(2)\nclass Backend: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_backend", raising=False)
    registry = Registry()
    with ThreadPoolExecutor() as threads:
        slow = threads.submit(registry.backend, registry.for_files({"model.odd"}))
        assert registry.backend(registry.info("echo"))
        assert not slow.done()


def test_built_in_names_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plug-in cannot take the place of a built-in backend by calling itself the same."""
    plug_in(tmp_path, "", name="python")
    monkeypatch.syspath_prepend(tmp_path)
    assert Registry().info("python").target == "backends.python:PythonBackend"
