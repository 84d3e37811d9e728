"""`tensorgate predict`: rows that fail, and commands that cannot be done."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from support.commands import read, reasons, tensorgate, vectors, write

ROWS = np.arange(300, dtype=np.float32)


@pytest.fixture
def some_fail(tmp_path: Path) -> Path:
    """Rows for `moody`, three of which it does not like, and a null."""
    values = ROWS.tolist()
    values[5], values[70], values[71], values[299] = 666.0, 404.0, 666.0, None
    return write(tmp_path / "in.parquet", x=pa.array(values, pa.float32()))


def test_rows_that_fail(tmp_path, predict, some_fail):
    """Exactly the bad rows have no result and are listed with their reasons; the exit code says that there are some."""
    target = tmp_path / "out.parquet"
    answer = predict("moody", some_fail, target, "--keep", "x")
    assert answer.returncode == 1
    assert answer.stderr.splitlines()[-1] == f"tensorgate: 4 of 300 rows failed: {target}.errors.csv says why"
    got = reasons(target)
    assert list(got) == [5, 70, 71, 299]
    assert got[5].startswith("model 'moody': it failed on this request: internal error, id ")
    assert got[70] == "model 'moody': x: expected anything but 404"
    assert got[299] == "column 'x' is null"
    table = read(target)
    assert [row for row, y in enumerate(table["y"]) if y is None] == [5, 70, 71, 299]
    assert all(y == [x + 1] * 1024 for x, y in zip(table["x"], table["y"], strict=True) if y is not None)


def test_failed_rows_of_numpy_files(tmp_path, predict, some_fail):
    """Where a file cannot hold nothing, failed rows are NaN."""
    assert predict("moody", some_fail, tmp_path / "out.npy").returncode == 1
    got = np.load(tmp_path / "out.npy")
    assert np.flatnonzero(np.isnan(got).all(1)).tolist() == [5, 70, 71, 299]
    np.testing.assert_array_equal(got[6], np.full(1024, 7, np.float32))


def test_a_later_run_leaves_no_old_list(tmp_path, predict, some_fail):
    """When nothing fails any more, the list of what failed goes too."""
    target = tmp_path / "out.npy"
    assert predict("moody", some_fail, target).returncode == 1
    answer = predict("moody", write(tmp_path / "good.npy", x=ROWS), target, "--force", "--batch-size", "10")
    assert answer.returncode == 0
    assert not Path(f"{target}.errors.csv").exists()


@pytest.mark.parametrize(
    ("column", "faults"),
    [
        (pa.array([2**31 - 1, 2**31, -(2**31), -1], pa.int64()), {1: "is 2147483648, which is no INT32"}),
        (pa.array([1.0, 2.5, float("nan"), -0.0]), {1: "is 2.5, which is no INT32", 2: "is nan, which is no INT32"}),
        (
            pa.array([1e300, 7.0, float("inf"), 0.0]),
            {0: "is 1e+300, which is no INT32", 2: "is inf, which is no INT32"},
        ),
        (pa.array([2**63, 1, 2, 3], pa.uint64()), {0: "is 9223372036854775808, which is no INT32"}),
        (pa.array([True, False, None, True]), {2: "is null"}),
        (
            pa.array(np.array([1, 0, 3, 1.5], np.float16), mask=np.array([0, 1, 0, 0], bool)),
            {1: "is null", 3: "is 1.5, which is no INT32"},
        ),
        (pa.array(["1", "2", "1", "x"]).dictionary_encode(), {3: "is 'x', expected an integer"}),
    ],
)
def test_numbers_keep_their_value_or_fail(tmp_path, predict, column, faults):
    """An integer input takes whole numbers in its range from any column, and refuses the rest row by row."""
    target = tmp_path / "out.parquet"
    answer = predict("tokens", write(tmp_path / "in.parquet", tokens=column), target, "--select", "twice")
    assert answer.returncode == 1, answer.stderr
    assert reasons(target) == {row: f"column 'tokens' {why}" for row, why in faults.items()}
    good = [None if row in faults else [2 * int(v)] for row, v in enumerate(column.to_pylist())]
    assert [[v[0]] if v else None for v in read(target)["twice"]] == [
        None if v is None else [(v[0] + 2**31) % 2**32 - 2**31] for v in good
    ]


def test_vectors_of_the_wrong_size(tmp_path, predict):
    """A list with too few values fails its row."""
    rows = write(tmp_path / "in.parquet", x=pa.array([[1.0] * 4, [1.0] * 3, None, [None] * 4], pa.list_(pa.float32())))
    assert predict("classifier", rows, tmp_path / "out.parquet").returncode == 1
    assert reasons(tmp_path / "out.parquet") == {
        1: "input 'x' [4] takes 4 values a row, got 3",
        2: "column 'x' is null",
        3: "column 'x' has a null in its list",
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files with nothing or something wrong."""
    folder = tmp_path_factory.mktemp("files")
    four = np.zeros((3, 4), np.float32)
    write(folder / "four.npy", x=four)
    write(folder / "five.csv", **{name: [1.0, 2.0] for name in "abcde"})
    write(folder / "words.parquet", x=["a", "b"], when=pa.array([0, 1], pa.timestamp("s")))
    write(folder / "times.parquet", x=pa.array([0, 1], pa.timestamp("s")))
    write(folder / "numbers.parquet", text=[1, 2])
    np.save(folder / "fortran.npy", np.asfortranarray(four))
    np.save(folder / "objects.npy", np.array([{}]), allow_pickle=True)
    np.savez(folder / "uneven.npz", a=four, b=four[:2])
    (folder / "short.npy").write_bytes((folder / "four.npy").read_bytes()[:-4])
    for suffix in (".npy", ".npz", ".csv", ".parquet"):
        (folder / f"empty{suffix}").touch()
    columns = {"lst": [[1], []], "obj": [{"a": 1}, None], "raw": [b"\xff", b""]}
    write(folder / "types.parquet", x=vectors(np.zeros((2, 4), np.float32)), **columns)
    (folder / "there.csv").touch()
    (folder / "there.csv.errors.csv").write_text("x_0,x_1,x_2,x_3\n1,2,3,4\n")
    (folder / "folder.csv").mkdir()
    return folder


FIVE = "columns 'a', 'b', 'c', 'd', 'e'"
WRONG = [
    ("classifier", "none.csv", "out.csv", "", "--input: no such file: none.csv"),
    ("classifier", "four.txt", "out.csv", "", "--input: no such file: four.txt"),
    ("classifier", "there.csv", "out.csv", "", "there.csv: Empty CSV file"),
    ("classifier", "empty.npy", "out.csv", "", "empty.npy: "),
    ("classifier", "empty.npz", "out.csv", "", "empty.npz: File is not a zip file"),
    ("classifier", "empty.parquet", "out.csv", "", "empty.parquet: Parquet file size is 0 bytes"),
    ("classifier", "four.npy", "out.xls", "", "--output: expected .parquet, .csv, .npy, .npz, got '.xls': out.xls"),
    ("classifier", "four.npy", "no/out.csv", "", "--output: no such folder: no"),
    ("classifier", "four.npy", "there.csv", "", "--output: there.csv exists; --force replaces it"),
    ("classifier", "four.npy", "out.npy", "", "--output: .npy holds one output, the model has logits, probabilities"),
    ("classifier", "four.npy", "out.npy", "--select logit", "--select: model 'classifier' has no output 'logit'"),
    ("classifier", "four.npy", "out.npy", "--select logits --keep array", "--keep: .npy holds outputs only"),
    ("classifier", "four.npy", "out.csv", "--keep id", "--keep: the file has no column 'id': it has column 'array'"),
    ("classifier", "five.csv", "out.csv", "", f"takes 4 values a row, {FIVE} have 5: say --map x=COLUMNS, or --keep"),
    ("classifier", "five.csv", "out.csv", "--map x=a,z", f"--map: the file has no column 'z': it has {FIVE}"),
    ("classifier", "five.csv", "out.csv", "--map z=a", "--map: input 'z' of model 'classifier' is unknown: expected x"),
    ("classifier", "five.csv", "out.csv", "--map x", "--map: expected INPUT=COLUMNS, got 'x'"),
    ("classifier", "times.parquet", "out.csv", "", "column 'x' is timestamp[ms]: input 'x' (FP32 [-1,4]) of model"),
    ("classifier", "fortran.npy", "out.csv", "", "fortran.npy: array 'array' is in Fortran's order"),
    ("classifier", "objects.npy", "out.csv", "", "objects.npy: array 'array' has dtype object: expected numbers or"),
    ("classifier", "uneven.npz", "out.csv", "", "uneven.npz: arrays differ in their number of rows: 'a' 3, 'b' 2"),
    ("classifier", "short.npy", "out.csv", "", "short.npy: array 'array' ends too early"),
    ("classifier", "four.npy", "out.csv", "--batch-size 257", "--batch-size: model 'classifier' takes up to 256 rows"),
    ("classifier", "four.npy", "out.csv", "--version 9", "Request for unknown model: 'classifier' version 9 is not"),
    ("nobody", "four.npy", "out.csv", "", "Request for unknown model: 'nobody' is not found"),
    (
        "two",
        "four.npy",
        "out.csv",
        "",
        "no column for input 'a' (FP32 [-1,2]) of model 'two': it has column 'array'",
    ),
    ("classifier", "types.parquet", "out.csv", "--keep lst", ".csv cannot hold column 'lst', which is list<"),
    ("classifier", "types.parquet", "out.csv", "--keep obj", ".csv cannot hold column 'obj', which is struct<"),
    ("classifier", "types.parquet", "out.csv", "--keep raw", ".csv cannot hold column 'raw', which is binary"),
    (
        "shout",
        "words.parquet",
        "out.csv",
        "--map text=x --binary",
        ".csv cannot hold column 'shouted', which is binary",
    ),
    ("classifier", "five.csv", "five.csv", "--force", "--output: five.csv would replace the input"),
    ("classifier", "five.csv", "./../files0/five.csv", "--force", "five.csv would replace the input"),
    ("classifier", "there.csv.errors.csv", "there.csv", "--force", "--output: there.csv would replace the input"),
    ("classifier", "four.npy", "folder.csv", "--force", "--output: expected a file, folder.csv is a folder"),
    ("two", "five.csv", "out.csv", "--map b=c --keep total", "--keep: the file has no column 'total'"),
    ("whole", "four.npy", "out.csv", "--batch-size 2", "--batch-size: model 'whole' does not batch"),
    ("shout", "numbers.parquet", "out.csv", "", "column 'text' is int64: input 'text' (BYTES [-1,1]) of model 'shout'"),
    ("shout", "words.parquet", "out.npy", "--map text=x", "--output: .npy holds numbers, output 'shouted'"),
    ("tokens", "numbers.parquet", "out.csv", "", "--output: the size of output 'twice' (INT32 [-1,-1]) is open"),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: " ".join(case[:4]))
def test_what_cannot_be_done(predict, files, monkeypatch, case):
    """Whatever is wrong with a command is said in a line, before anything is written."""
    monkeypatch.chdir(files)
    model, source, target, options, message = case
    assert message in predict(model, source, target, *options.split()).refusal
    assert not Path("out.csv").exists()
    assert not list(files.glob("*.partial"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--select", "logits,probabilities,logits"), "argument --select: 'logits' is named twice"),
        (("--keep", "a,a"), "argument --keep: 'a' is named twice"),
        (("--address", ""), "argument --address: expected HOST:PORT, got ''"),
        (("--address", "http://localhost:8001"), "argument --address: expected HOST:PORT, got 'http://localhost:8001'"),
        (("--retry-for-s", "-1"), "argument --retry-for-s: expected 0 or more, got '-1'"),
    ],
)
def test_what_no_flag_can_be(tmp_path, option, message):
    """A flag that cannot be meant so is named, and nothing is left that is in the way of the corrected command."""
    files = ("--input", "in.csv", "--output", "out.csv")
    answer = tensorgate("predict", "classifier", *files, *option, cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stderr.splitlines()[-1].endswith(message)
    assert not list(tmp_path.iterdir())


def test_a_mistake_in_a_process_of_its_own(tmp_path, gateway):
    """The line is on stderr and the exit code is 2."""
    answer = tensorgate(
        "predict", "classifier", "--input", "x.csv", "--output", "y.csv", "--address", gateway.address, cwd=tmp_path
    )
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == "tensorgate: --input: no such file: x.csv\n"


def test_no_server(tmp_path, here):
    """Where nobody serves, the user is told where that was, and nothing is left behind."""
    rows = write(tmp_path / "in.npy", x=np.zeros((1, 4), np.float32))
    for command in (
        ["predict", "m", "--input", rows, "--output", tmp_path / "out.npy"],
        ["models"],
        ["bench", "m"],
    ):
        answer = here(*command, "--address", "localhost:9")
        assert answer.returncode == 3
        assert re.fullmatch(r"tensorgate: no server answers at localhost:9 \(.*\)\n", answer.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["in.npy"]
