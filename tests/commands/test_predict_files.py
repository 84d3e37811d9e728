"""`tensorgate predict`: every kind of file in and out, with the values that the model's own runtime gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from support.commands import read, vectors, write
from support.zoo import onnx_classifier, sample

from tensorgate_client.tensors import DTYPES

X = np.random.default_rng(3).normal(size=(1000, 4)).astype(np.float32)
IDS = [f"{number:04}" for number in range(len(X))]


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    """What the runtime itself answers."""
    session = onnxruntime.InferenceSession(onnx_classifier())
    names = [output.name for output in session.get_outputs()]
    batches = [session.run(names, {"x": X[first : first + 256]}) for first in range(0, len(X), 256)]
    return dict(zip(names, map(np.concatenate, zip(*batches, strict=True)), strict=True))


def source(folder: Path, kind: str) -> Path:
    """The rows as a file of this kind."""
    columns = {f"c{number}": X[:, number] for number in range(4)}
    parquet = folder / "in.parquet"
    match kind:
        case ".npy" | ".npz":
            return write(folder / f"in{kind}", x=X)
        case "compressed .npz":
            np.savez_compressed(folder / "in.npz", x=X)
            return folder / "in.npz"
        case ".csv":
            return write(folder / "in.csv", id=IDS, **columns)
        case "columns":
            return write(parquet, id=IDS, **columns)
        case "lists":
            return write(parquet, id=IDS, x=vectors(X).cast(pa.list_(pa.float64())))
    groups = {"row_group_size": 7} if kind == "row groups" else {}
    pa.parquet.write_table(pa.table({"id": IDS, "x": vectors(X)}), parquet, **groups)
    return parquet


@pytest.mark.parametrize(
    "kind", [".npy", ".npz", "compressed .npz", ".csv", "vectors", "lists", "row groups", "columns"]
)
def test_every_kind_of_input(tmp_path, predict, expected, kind):
    """Whatever file the rows come in, each gets the answer that the runtime itself gives."""
    keep = () if ".np" in kind else ("--keep", "id")
    target = tmp_path / "out.parquet"
    answer = predict("classifier", source(tmp_path, kind), target, *keep)
    assert answer.returncode == 0, answer.stderr
    got = read(target)
    assert list(got) == [*keep[1:], "logits", "probabilities"]
    for name, values in expected.items():
        np.testing.assert_array_equal(np.array(got[name], np.float32), values)
    assert not keep or got["id"] == IDS
    assert len(list(tmp_path.iterdir())) == 2, "something is left behind"


def test_into_csv(tmp_path, predict, expected):
    """A csv file has a column for each element, and what is copied looks as it did."""
    target = tmp_path / "out.csv"
    assert predict("classifier", source(tmp_path, ".csv"), target, "--keep", "id").returncode == 0
    got = read(target)
    assert list(got) == ["id", *(f"{name}_{at}" for name in expected for at in range(3))]
    assert target.read_text().splitlines()[1].startswith('"0000",')
    for name, values in expected.items():
        columns = [got[f"{name}_{at}"] for at in range(3)]
        np.testing.assert_array_equal(np.array(columns, np.float32).T, values)


def test_into_numpy_files(tmp_path, predict, expected):
    """An .npy file holds one output, an .npz file all by name."""
    rows = source(tmp_path, ".npy")
    assert predict("classifier", rows, tmp_path / "out.npy", "--select", "probabilities").returncode == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected["probabilities"])
    assert predict("classifier", rows, tmp_path / "out.npz").returncode == 0
    with np.load(tmp_path / "out.npz") as arrays:
        assert sorted(arrays) == sorted(expected)
        for name, values in expected.items():
            np.testing.assert_array_equal(arrays[name], values)


def test_flat_columns_take_the_models_shape(tmp_path, predict):
    """Columns chosen by a pattern fill an image row by row; outputs come in their own shapes and datatypes."""
    image = np.arange(60, dtype=np.float32).reshape(10, 6)
    columns = {f"pixel_{at}": image[:, at] for at in range(6)}
    rows = write(tmp_path / "in.csv", label=list(range(10)), **columns)
    answer = predict("images", rows, tmp_path / "out.npz", "--map", "image=pixel_*")
    assert answer.returncode == 0, answer.stderr
    with np.load(tmp_path / "out.npz") as arrays:
        np.testing.assert_array_equal(arrays["flipped"], image.reshape(10, 2, 3).transpose(0, 2, 1))
        assert arrays["mean"].dtype == np.float16
        np.testing.assert_array_equal(arrays["mean"], image.mean(1).astype(np.float16))


def test_several_inputs_from_columns(tmp_path, predict):
    """Each input takes the columns that are mapped to it, in their order, or that have its name."""
    rows = write(tmp_path / "in.csv", q=[0.5, 1.5], b=[10, 2**60], p=[1, 2])
    answer = predict("two", rows, tmp_path / "out.csv", "--map", "a=p,q", "--keep", "b")
    assert answer.returncode == 0, answer.stderr
    assert read(tmp_path / "out.csv") == {"b": [10, 2**60], "total": [11.5, float(2**60)]}


def test_numbered_columns_are_an_input(tmp_path, predict):
    """What a csv output calls NAME_0, NAME_1 is the input NAME of the next model."""
    rows = write(tmp_path / "in.parquet", a_0=[1.0, 2.0], b=[3, 4], a_1=[10.0, 20.0])
    assert predict("two", rows, tmp_path / "out.parquet").returncode == 0
    assert read(tmp_path / "out.parquet") == {"total": [14.0, 26.0]}


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_text(tmp_path, predict, suffix):
    """Text goes in and comes out as text, also where it looks like numbers."""
    words = ["007", "größe", "", 'a "quoted", one\nof two lines']
    target = tmp_path / f"out{suffix}"
    answer = predict("shout", write(tmp_path / f"in{suffix}", text=words), target, "--keep", "text")
    assert answer.returncode == 0, answer.stderr
    types = pa.csv.ConvertOptions(column_types={"shouted": pa.string(), "text": pa.string()})
    parsing = pa.csv.ParseOptions(newlines_in_values=True)
    got = read(target) if suffix == ".parquet" else pa.csv.read_csv(target, None, parsing, types).to_pydict()
    assert got == {"text": words, "shouted": [word.encode().upper().decode() for word in words]}


def test_binary(tmp_path, predict):
    """Bytes that are no text fail where text is to be written, and are written as they are on request."""
    rows = write(tmp_path / "in.parquet", text=["raw", "b"])
    answer = predict("shout", rows, tmp_path / "out.parquet")
    assert answer.returncode == 1
    assert read(tmp_path / "out.parquet") == {"shouted": [None, "B"]}
    assert "--binary" in (tmp_path / "out.parquet.errors.csv").read_text()
    assert predict("shout", rows, tmp_path / "binary.parquet", "--binary").returncode == 0
    assert read(tmp_path / "binary.parquet") == {"shouted": [b"\xff", b"B"]}


def test_rows_of_different_lengths(tmp_path, predict):
    """Lists of any lengths go to a model that takes them, and their results come back in order."""
    tokens = [[1], [2, 3], [4, 5], [6], [], [7, 8, 9]] * 5
    rows = write(tmp_path / "in.parquet", tokens=pa.array(tokens, pa.list_(pa.int64())))
    answer = predict("tokens", rows, tmp_path / "out.parquet")
    assert answer.returncode == 0, answer.stderr
    assert read(tmp_path / "out.parquet") == {
        "twice": [[2 * token for token in row] for row in tokens],
        "count": [len(row) for row in tokens],
    }


def test_a_model_that_does_not_batch(tmp_path, predict):
    """Each row is a request of its own, reshaped to what the model takes."""
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    answer = predict("whole", write(tmp_path / "in.npy", x=rows), tmp_path / "out.npy")
    assert answer.returncode == 0, answer.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), rows.reshape(3, 2, 2).transpose(0, 2, 1))


@pytest.mark.parametrize("datatype", sorted(set(DTYPES) - {"BYTES"}))
def test_every_datatype(tmp_path, predict, datatype):
    """Numbers of every datatype come through unchanged, extremes and all."""
    rows = sample(datatype).astype(np.float32 if datatype == "BF16" else DTYPES[datatype])
    source = write(tmp_path / "in.npy", x=rows)
    for suffix in (".npy", ".parquet"):
        answer = predict(f"identity_{datatype}", source, tmp_path / f"out{suffix}")
        assert answer.returncode == 0, answer.stderr
    got = np.load(tmp_path / "out.npy")
    assert got.dtype == rows.dtype
    np.testing.assert_array_equal(got, rows)
    np.testing.assert_array_equal(np.array(read(tmp_path / "out.parquet")["y"], rows.dtype), rows)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npy"])
def test_no_rows(tmp_path, predict, suffix):
    """A file without rows gives a file without rows."""
    rows = write(tmp_path / f"in{suffix}", x=np.empty((0, 4), np.float32)) if suffix != ".csv" else tmp_path / "in.csv"
    if suffix == ".csv":
        rows.write_text("x_0,x_1,x_2,x_3\n")
    answer = predict("classifier", rows, tmp_path / "out.parquet")
    assert answer.returncode == 0, answer.stderr
    assert read(tmp_path / "out.parquet") == {"logits": [], "probabilities": []}


def test_categories(tmp_path, predict):
    """Columns of categories, as pandas writes them, are text to a model and in the output."""
    words = [f"word{number % 3}" for number in range(10_000)]
    rows = write(tmp_path / "in.parquet", text=pa.array(words).dictionary_encode(), at=list(range(10_000)))
    answer = predict("shout", rows, tmp_path / "out.parquet", "--keep", "text,at")
    assert answer.returncode == 0, answer.stderr
    assert read(tmp_path / "out.parquet") == {
        "text": words,
        "at": list(range(10_000)),
        "shouted": [word.upper() for word in words],
    }
