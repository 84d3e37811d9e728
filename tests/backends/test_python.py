"""`model.py`: from importing it to forgetting it."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from backends.base import InvalidInput, LoadError, Model, TensorSpec

HEAD = """
import numpy as np

class Model:
    inputs, outputs = [("x", "float32", (-1, 2))], [("y", "float32", (-1, 2))]
"""
PLAIN = HEAD + "    def execute(self, inputs): return {'y': inputs['x']}\n"
LIFE = (
    HEAD
    + """
    def __init__(self): self.events = ["made"]
    def load(self, source): self.events.append(f"loaded {source.name} {source.version} {source.parameters['k']}")
    def execute(self, inputs):
        self.events.append("executed")
        return {"y": [" ".join(self.events)]}
    def close(self): (self.folder() / "closed").touch()
    def folder(self): from pathlib import Path; return Path(__file__).parent
"""
)


def modules() -> set[str]:
    """The modules of `model.py` files that are imported now."""
    return {name for name in sys.modules if name.startswith("tensorgate_model_")}


def answer(model: Model, execute: Any) -> Any:
    """What the model makes of a row of zeros."""
    return execute(model, x=np.zeros((1, 2), np.float32))["y"].tolist()


def using_helper(value: float) -> tuple[str, str]:
    """A model.py and the module beside it that it uses."""
    execute = "    def execute(self, inputs): return {'y': inputs['x'] + helper.VALUE}\n"
    return f"from . import helper\n{HEAD}{execute}", f"VALUE = {value}\n"


def test_life_cycle(load: Any, execute: Any) -> None:
    """A class is made, loaded with its configuration, executed and closed, each instance for itself."""
    model = load("model.py", LIFE, {"k": "v"})
    for _ in range(2):
        assert answer(model, execute) == ["made loaded m 1 v executed"]
    file = load.file("model.py", LIFE)
    execute(load.reload(file, {"k": "v"}), x=np.zeros((1, 2), np.float32))
    assert (file.parent / "closed").exists()


def test_load_and_close_are_optional(load: Any, execute: Any) -> None:
    """A class with nothing but `execute` is a model."""
    assert answer(load("model.py", PLAIN), execute) == [[0, 0]]


def test_a_module_beside_it(load: Any, execute: Any) -> None:
    """Two models that each have a helper.py use their own."""
    models = []
    for value in (1, 2):
        main, helper = using_helper(value)
        file = load.file("model.py", main)
        (file.parent / "helper.py").write_text(helper)
        models.append(load.reload(file))
    assert [answer(model, execute) for model in models] == [[[1, 1]], [[2, 2]]]


def test_reload_reads_the_files_again(load: Any, execute: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit to model.py or to a module beside it is served after a reload, however soon it follows."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)  # whatever the developer's environment says
    file = load.file("model.py", using_helper(0)[0])
    for value in (1, 2, 3):  # within one second and of one size, which is all that bytecode would be checked for
        (file.parent / "helper.py").write_text(using_helper(value)[1])
        file.write_text(using_helper(0)[0].replace("VALUE", f"VALUE + {value}"))
        model = load.reload(file, close=False)
        assert answer(model, execute) == [[2 * value, 2 * value]]
        model.close()
    assert sorted(path.name for path in file.parent.iterdir()) == ["helper.py", "model.py"]


def test_old_and_new_side_by_side(load: Any, execute: Any) -> None:
    """During a reload the old version goes on answering as before, until it is closed and gone."""
    before = modules()
    file = load.file("model.py", "from . import late\n" + PLAIN.replace("['x']", "['x'] + late.VALUE"))
    (file.parent / "late.py").write_text("VALUE = 1\n")
    old = load.reload(file, close=False)
    (file.parent / "late.py").write_text("VALUE = 2\n")
    new = load.reload(file, close=False)
    assert (answer(old, execute), answer(new, execute)) == ([[1, 1]], [[2, 2]])
    old.close()
    assert answer(new, execute) == [[2, 2]]
    new.close()
    assert modules() == before


@pytest.mark.parametrize("origin", [".impl", "shared_models"])
def test_a_class_from_another_module(origin: str, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing a model whose class comes from elsewhere leaves nothing of its own and takes nothing of others' away."""
    before = modules()
    file = load.file("model.py", f"from {origin} import Model\n")
    (file.parent / "impl.py").write_text(PLAIN)
    shared = ModuleType("shared_models")
    exec(PLAIN, shared.__dict__)  # noqa: S102 - our own text
    monkeypatch.setitem(sys.modules, "shared_models", shared)
    load.reload(file, close=False).close()
    assert modules() == before
    assert sys.modules["shared_models"] is shared


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "class Model:\n    def execute(self, inputs)\n",
            r"^model\.py line 2 does not import: SyntaxError: expected ':'$",
        ),
        (
            "import not_a_module\n",
            r"^model\.py line 1 does not import: ModuleNotFoundError: No module named 'not_a_module'$",
        ),
        ("from . import nothing\n", r"^model\.py line 1 does not import: ImportError: cannot import name 'nothing'"),
        ("\n1 / 0\n", r"^model\.py line 2 does not import: ZeroDivisionError: division by zero$"),
        ("import json; json.loads('{')\n", r"^model\.py line 1 does not import: JSONDecodeError: .*$"),
        ("compile('(', 'elsewhere', 'exec')\n", r"^model\.py line 1 does not import: SyntaxError: .*never closed$"),
        ("raise RuntimeError('two\\nlines')\n", r"^model\.py line 1 does not import: RuntimeError: two lines$"),
        ("a\0b\n", r"^model\.py does not import: SyntaxError: source code .*null bytes$"),
        ("import sys; sys.exit(3)\n", r"^model\.py line 1 does not import: SystemExit: 3$"),
        ("class Other: pass\n", r"needs a class named Model with a method execute\(self, inputs\)"),
        ("class Model: pass\n", r"needs a class named Model with a method execute\(self, inputs\)"),
        ("Model = 3\n", r"needs a class named Model with a method execute\(self, inputs\)"),
        (
            PLAIN.replace('"float32"', '"float33"', 1),
            r"inputs and outputs are lists of \(name, dtype, shape\): .*float33",
        ),
        (
            PLAIN.replace('[("x", "float32", (-1, 2))]', '["x"]'),
            r"inputs and outputs are lists of \(name, dtype, shape\)",
        ),
        (
            "class Model:\n    def execute(self, inputs): ...\n",
            r"(?s)nothing says what model\.py takes.*or declare input",
        ),
    ],
)
def test_what_does_not_load(text: str, message: str, load: Any) -> None:
    """Whoever wrote a model.py that does not load reads why, and nothing of it stays behind."""
    before = modules()
    with pytest.raises(LoadError, match=message):
        load("model.py", text)
    assert modules() == before


@pytest.mark.parametrize(
    ("helper", "place"),
    [("def f():\n    raise OSError('gone')\nf()\n", "helper.py line 2"), ("x = 1\nx = = 2\n", "helper.py line 2")],
)
def test_a_module_beside_it_does_not_load(helper: str, place: str, load: Any) -> None:
    """Whoever wrote a helper.py that does not import reads which of its lines is at fault."""
    file = load.file("model.py", using_helper(1)[0])
    (file.parent / "helper.py").write_text(helper)
    with pytest.raises(LoadError, match=rf"^{place} does not import: (OSError: gone|SyntaxError: invalid syntax)$"):
        load.reload(file)


@pytest.mark.parametrize("result", ["None", "[1]", "inputs['x']"])
def test_outputs_that_are_no_mapping(result: str, load: Any, execute: Any) -> None:
    """A model that returns something other than a dict of arrays says so in the server's log."""
    model = load("model.py", HEAD + f"    def execute(self, inputs): return {result}\n")
    with pytest.raises(TypeError, match="execute returns a dict of arrays by output name, got"):
        answer(model, execute)


@pytest.mark.parametrize("result", ["['a', 'é']", "[b'a', 'é'.encode()]", "np.array(['a', 'é'], dtype=object)"])
def test_strings(result: str, load: Any, execute: Any) -> None:
    """A model may return strings as lists or arrays, of text or of bytes."""
    model = load("model.py", HEAD + f"    def execute(self, inputs): return {{'y': {result}}}\n")
    texts = [text if isinstance(text, str) else text.decode() for text in answer(model, execute)]
    assert texts == ["a", "é"]


def test_refusing_an_input(load: Any, execute: Any) -> None:
    """A model may refuse a caller's data with a message for the caller."""
    text = "from backends.base import InvalidInput\n" + HEAD
    model = load("model.py", text + "    def execute(self, inputs): raise InvalidInput('x holds no face')\n")
    with pytest.raises(InvalidInput, match=r"^x holds no face$"):
        answer(model, execute)


def test_tensors_declared_in_config(load: Any, declare: Any) -> None:
    """The class and config.pbtxt may each declare what the other leaves out."""
    x, y = ("int64", (-1, 3)), ("float32", (-1, 2))
    text = "class Model:\n    def execute(self, inputs): ...\n"
    declared = declare({"x": x}, {"y": y}, 4)
    assert load("model.py", text, declared=declared).signature == declared
    mixed = load("model.py", text + "    inputs = [('a', object, [-1, 1])]\n", declared=declare({}, {"y": y}, 4))
    assert mixed.signature.inputs == (TensorSpec("a", np.dtype(object), (-1, 1)),)
    assert mixed.signature.outputs == (TensorSpec.of("y", *y),)
    assert mixed.signature.max_batch_size == -1


@pytest.mark.parametrize(("shape", "limit"), [((-1, 2), -1), ((2, 2), 0), ((), 0)])
def test_batching_follows_the_shapes(shape: tuple[int, ...], limit: int, load: Any) -> None:
    """A model whose tensors all begin with -1 is given batches, any other one request at a time."""
    assert load("model.py", PLAIN.replace("(-1, 2))]\n", f"{shape})]\n")).signature.max_batch_size == limit


@pytest.mark.parametrize("name", ["with.dots", "with-dash", "1", "spaced name"])
def test_any_model_name(name: str, load: Any, execute: Any) -> None:
    """A model's name need not be a Python name."""
    main, helper = using_helper(1)
    file = load.file("model.py", main)
    (file.parent / "helper.py").write_text(helper)
    assert answer(load.reload(file, name=name), execute) == [[1, 1]]
