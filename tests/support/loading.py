"""Models loaded the way the gateway loads them, without the gateway."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from backends.base import Model, ModelSource, Signature
from backends.registry import Registry

UNDECLARED = Signature((), ())
Content = bytes | str | Path | Callable[[Path], None]


class Loader:
    """Puts a model file into a version folder of its own and loads it with the backend that recognises it."""

    def __init__(self, root: Path, closing: ExitStack) -> None:
        self._root = root
        self._closing = closing
        self.count = 0

    def file(self, filename: str, content: Content) -> Path:
        """The model file in a new version folder; `content` may be what writes it."""
        self.count += 1
        path = self._root / str(self.count) / filename
        path.parent.mkdir(parents=True)
        if callable(content):
            content(path)
        elif isinstance(content, Path):
            path.write_bytes(content.read_bytes())
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def __call__(self, filename: str, content: Content, parameters: Mapping[str, str] = {}, **options: Any) -> Model:
        """The loaded model, closed when the test ends."""
        return self.reload(self.file(filename, content), parameters, **options)

    def reload(
        self,
        file: Path,
        parameters: Mapping[str, str] = {},
        *,
        declared: Signature = UNDECLARED,
        backend: str = "",
        name: str = "m",
        device: str = "cpu",
        close: bool = True,
        **more: Any,
    ) -> Model:
        """Load a file that is there already, with the backend that recognises it or that is named."""
        registry = Registry()
        info = registry.info(backend) if backend else registry.for_files({file.name})
        source = ModelSource(
            name, 1, file.parent, file if file.exists() else None, parameters, declared, device, **more
        )
        model = registry.backend(info).load(source)
        if close:
            self._closing.callback(model.close)
        return model


def execute(model: Model, **inputs: Any) -> Mapping[str, Any]:
    """The outputs of one batch, in an instance of its own, on a thread of its own."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_once, model, inputs).result()


def _once(model: Model, inputs: dict[str, Any]) -> Mapping[str, Any]:
    instance = model.instance()
    try:
        return instance.execute(inputs)
    finally:
        instance.close()
