"""Archives whose pickles would run code when torch reads them."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import linear, save_exported

from backends.base import LoadError

_WRITTEN_BY_TORCH = ("byteorder", "version", ".data/version", ".data/serialization_id")
Records = dict[str, bytes]


class Code:
    """Unpickled without restraint, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        """What pickle calls."""
        return os.mkdir, (str(self.mark),)


def saved(content: Any) -> bytes:
    """`content` as torch.save writes it."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def in_sample_inputs(records: Records, mark: Path) -> None:
    """In the example inputs, which torch reads without restraint where reading with restraint fails."""
    records["data/sample_inputs/model.pt"] = saved(((Code(mark),), {}))


def in_weights(records: Records, mark: Path) -> None:
    """In a weight that says it is pickled, which torch reads without restraint."""
    config = json.loads(records["data/weights/model_weights_config.json"])
    config["config"]["weight"]["use_pickle"] = True
    records["data/weights/model_weights_config.json"] = json.dumps(config).encode()
    records["data/weights/weight_0"] = saved(Code(mark))


def in_constants(records: Records, mark: Path) -> None:
    """In a constant of a type of its own, which torch hands to pickle itself."""
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    records["data/constants/model_constants_config.json"] = json.dumps({"config": {"o": entry}}).encode()
    records["data/constants/opaque_obj_0"] = pickle.dumps(Code(mark))


def in_legacy_weights(records: Records, mark: Path) -> None:
    """In weights of the form that older releases wrote."""
    records["data/weights/model.pt"] = saved({"weight": Code(mark)})


PLACES = [in_sample_inputs, in_weights, in_constants, in_legacy_weights]


def crafted(place: Callable[[Records, Path], None], mark: Path) -> Callable[[Path], None]:
    """What writes an archive with code in one place."""

    def write(path: Path) -> None:
        save_exported(linear(), path, torch.zeros(2, 4))
        reader = torch._C.PyTorchFileReader(str(path))
        records = {name: reader.get_record(name) for name in reader.get_all_records()}
        place(records, mark)
        writer = torch._C.PyTorchFileWriter(str(path))
        for name in records.keys() - set(_WRITTEN_BY_TORCH):
            writer.write_record(name, records[name], len(records[name]))
        writer.write_end_of_file()

    return write


@pytest.mark.parametrize("place", PLACES)
def test_code_is_not_run(place: Any, load: Any, tmp_path: Path) -> None:
    """A .pt2 with code in its pickles is refused with the reason and the way to trust it; the code does not run."""
    mark = tmp_path / "the code ran"
    with pytest.raises(LoadError) as caught:
        load("model.pt2", crafted(place, mark))
    assert not mark.exists()
    message = str(caught.value)
    assert message.startswith("model.pt2 holds pickled Python code (")
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD=0" in message
    assert "\n" not in message


@pytest.mark.parametrize("place", PLACES)
def test_trusted_repository(place: Any, load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever trusts the repository and says so gets torch's own behaviour, which runs the code."""
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    mark = tmp_path / "the code ran"
    with suppress(LoadError, AssertionError):  # having run, it is neither weight nor constant
        load("model.pt2", crafted(place, mark))
    assert mark.exists()


def test_many_at_once(load: Any, tmp_path: Path) -> None:
    """Models that load side by side do not lift the restraint for one another."""
    mark = tmp_path / "the code ran"
    files = [load.file("model.pt2", crafted(place, mark)) for place in PLACES for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        loading = [threads.submit(load.reload, file) for file in files]
        assert all(isinstance(future.exception(), LoadError) for future in loading)
    assert not mark.exists()
