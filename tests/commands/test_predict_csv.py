"""`tensorgate predict` from .csv files, whose rows may be anything."""

from __future__ import annotations

import csv

import pytest
from support.commands import read, reasons

CELLS = {
    "1,2,3": None,
    " 1.5 ,2,3.0": None,
    "nan,inf,3": None,
    "one,2,3": "column 'p' is 'one', expected a number",
    "1,,3": "column 'q' is empty",
    "1,2,3.5": "column 'b' is '3.5', expected an integer",
    "1,2,9223372036854775808": "column 'b' is '9223372036854775808', expected an integer",
    "1e39,2,3": "column 'p' is 1e+39, which is no FP32",
    "4,5,6": None,
}


def test_cells_of_csv_files(tmp_path, predict):
    """A cell that is no number of the input's datatype fails its own row, and says which and why."""
    lines = [f"{row},{cells}" for row, cells in enumerate(CELLS)]
    (tmp_path / "in.csv").write_text("\n".join(["row,p,q,b", *lines]))
    target = tmp_path / "out.parquet"
    answer = predict("two", tmp_path / "in.csv", target, "--map", "a=p,q", "--keep", "row")
    assert answer.returncode == 1, answer.stderr
    assert reasons(target) == {row: why for row, why in enumerate(CELLS.values()) if why}
    got = read(target)
    assert got["row"] == [str(row) for row in range(len(CELLS))]
    assert str(got["total"]) == str([6.0, 6.5, float("nan"), None, None, None, None, None, 15.0])


def test_failed_rows_of_a_narrow_csv_file(tmp_path, predict):
    """In a csv file of one column, too, each row has a line that readers do not pass over."""
    for name, model, rows in (("total", "two", "a_0,a_1,b\n1,2,3\n1,,3\n"), ("shouted", "shout", "text\nraw\nb\n")):
        (tmp_path / "in.csv").write_text(rows)
        assert predict(model, tmp_path / "in.csv", tmp_path / "out.csv", "--force").returncode == 1
        with (tmp_path / "out.csv").open(newline="") as file:
            values = [row[name] for row in csv.DictReader(file)]
        assert values == (["6", "nan"] if model == "two" else ["", "B"])


def test_lines_that_are_no_rows(tmp_path, predict):
    """A line with too few or too many cells, or with what is no text, fails alone; every other row keeps its place."""
    lines = [b"id,p,q,b"] + [b"%d,1,2,3" % row for row in range(100_000)]
    bad = {0: b"0,1", 7: b"7,1,2,3,4", 8: b"", 50_000: b"5,x\xff,2,3", 99_998: b"9", 99_999: b"9,1,2,3,4,5"}
    bad[8] = b"8,1,2"
    for row, line in bad.items():
        lines[row + 1] = line
    (tmp_path / "in.csv").write_bytes(b"\n".join(lines))
    target = tmp_path / "out.parquet"
    answer = predict("two", tmp_path / "in.csv", target, "--map", "a=p,q", "--keep", "id")
    assert answer.returncode == 1, answer.stderr
    assert reasons(target) == {
        0: "its line has 2 cells, expected 4",
        7: "its line has 5 cells, expected 4",
        8: "its line has 3 cells, expected 4",
        50_000: "column 'p' is no UTF-8 text",
        99_998: "its line has 1 cells, expected 4",
        99_999: "its line has 6 cells, expected 4",
    }
    got = read(target)
    assert [row for row, total in enumerate(got["total"]) if total is None] == list(bad)
    assert all(text == str(row) for row, text in enumerate(got["id"]) if row not in bad)


def test_nothing_but_lines_that_are_no_rows(tmp_path, predict):
    """A file of which no line can be read gives as many failed rows."""
    (tmp_path / "in.csv").write_text("p,q,b\n1\n2\n")
    target = tmp_path / "out.csv"
    assert predict("two", tmp_path / "in.csv", target, "--map", "a=p,q").returncode == 1
    assert reasons(target) == dict.fromkeys([0, 1], "its line has 1 cells, expected 3")


@pytest.mark.parametrize("at", [0, 2000])
def test_a_long_cell(tmp_path, predict, at):
    """A cell may be longer than what is read at once, wherever it stands."""
    words = [f"word{row}" for row in range(3000)]
    words[at] = "x" * 3_000_000
    (tmp_path / "in.csv").write_text("\n".join(["text", *words]))
    target = tmp_path / "out.parquet"
    answer = predict("shout", tmp_path / "in.csv", target)
    assert answer.returncode == 0, answer.stderr
    assert read(target)["shouted"] == [word.upper() for word in words]
