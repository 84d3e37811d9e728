"""`tensorgate bench`: a table of what it measures, whatever the figures are."""

from __future__ import annotations

import json
import re
import signal
import subprocess

import numpy as np
import pytest
from support.commands import tensorgate, write
from support.models import RepositoryBuilder
from support.server import TENSORGATE, serving

_SHORT = ("--seconds", "0.3", "--warmup", "0.1")
LATE = """
import time

class Model:
    inputs = [("x", "float32", (-1, 1))]
    outputs = [("y", "float32", (-1, 1))]
    asked = 0

    def execute(self, inputs):
        self.asked += 1
        time.sleep(0.5 if self.asked > 1 else 0)
        return {"y": inputs["x"]}
"""
"""Answers its first request at once: that is the one that is sent to see whether it would."""

_ROW = re.compile(r"^ *([\d.]+)" + r" +([\d,.]+)" * 5 + r" +(\d+)$")


@pytest.fixture
def bench(gateway, here):
    """Runs `tensorgate bench ...` for a moment."""
    return lambda *arguments: here("bench", *arguments, *_SHORT, "--address", gateway.address)


@pytest.mark.parametrize("way", [(), ("--stream",)])
def test_closed_loop(bench, way):
    """Each number of requests in flight has a line with rates and percentiles that fit together."""
    answer = bench("classifier", "--concurrency", "1,3", "--rows", "2", *way)
    assert answer.returncode == 0, answer.stderr
    head, *lines, note = answer.stdout.splitlines()
    assert head.split("  ")[0] == "in flight"
    assert note.startswith(f"(2 rows a request, closed loop, {'one stream' if way else 'a call each'}, 0.3 s a line; ")
    rows = [[float(cell.replace(",", "")) for cell in _ROW.match(line).groups()] for line in lines]
    assert [row[0] for row in rows] == [1, 3]
    for _, requests, rows_per_s, p50, p90, p99, errors in rows:
        assert requests > 0
        assert abs(rows_per_s - 2 * requests) <= 2
        assert 0 < p50 <= p90 <= p99
        assert errors == 0


@pytest.mark.parametrize("way", [(), ("--stream",)])
def test_open_loop(bench, way):
    """Requests at a rate come at that rate, and how many are in flight is measured."""
    answer = bench("classifier", "--rate", "50,100", "--json", *way)
    assert answer.returncode == 0, answer.stderr
    first, second = json.loads(answer.stdout)
    assert (first["offered_per_s"], second["offered_per_s"]) == (50, 100)
    assert first["in_flight"] > 0
    assert first["errors"] == second["errors"] == 0


@pytest.mark.parametrize("model", ["two", "shout", "tokens", "images", "whole"])
def test_random_requests_fit_the_model(bench, model):
    """Random requests suit models of any datatypes and shapes."""
    answer = bench(model, "--concurrency", "1", "--size", "5")
    assert answer.returncode == 0, answer.stderr
    assert _ROW.match(answer.stdout.splitlines()[1])


def test_rows_of_a_file(bench, tmp_path):
    """A file's rows are sent; those that the model fails on are counted, with their reason below the table."""
    rows = write(tmp_path / "in.csv", a=[1.0, 666.0], b=[0, 0])
    answer = bench("moody", "--input", rows, "--map", "x=a", "--concurrency", "1")
    assert answer.returncode == 1
    assert int(_ROW.match(answer.stdout.splitlines()[1])[7]) > 0
    assert answer.stdout.count("times INTERNAL: model 'moody': it failed on this request") == 1, "equal ones are one"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody"], "Request for unknown model: 'nobody' is not found"),
        (["classifier", "--rows", "300"], "expected 1 to 256 rows (max_batch_size), got 300"),
        (["whole", "--rows", "2"], "--rows: model 'whole' does not batch"),
        (["classifier", "--input", "none.csv"], "--input: no such file: none.csv"),
        (["classifier", "--map", "x=a"], "--map needs --input"),
        (
            ["open", "--size", "400000000"],
            "a request would have 1,525 MiB, expected up to 1,024: lower --size or --rows",
        ),
        (["classifier", "--plot", "plot.gif"], "--plot: expected .png, .svg, .pdf, got '.gif': plot.gif"),
    ],
)
def test_mistakes(bench, arguments, message):
    """What cannot be measured is said before anything is."""
    assert message in bench(*arguments).refusal


def test_numbers_that_are_none():
    """A flag with a wrong number is named."""
    answer = tensorgate("bench", "classifier", "--concurrency", "1,0")
    assert answer.returncode == 2
    assert answer.stderr.endswith("argument --concurrency: expected a whole number above 0, got '0'\n")


def test_more_than_can_be_sent(bench):
    """A rate that nobody can keep up ends in time, and is not taken for one that was kept up."""
    answer = bench("classifier", "--rate", "1e6", "--warmup", "0")
    assert answer.returncode == 0, answer.stderr
    assert re.search(r"^1e\+06 requests/s: only [\d,]+/s could be sent", answer.stdout, re.MULTILINE)


def test_nothing_answered_in_time(tmp_path, here):
    """A line without any answer says that it was measured for too short."""
    repository = RepositoryBuilder(tmp_path / "models")
    repository.add("late", {"model.py": LATE})
    with serving(repository.root) as running:
        command = ("bench", "late", "--concurrency", "3", *_SHORT, "--address", running.address)
        answer = here(*command)
    assert "3 in flight: none of 3 requests was answered within 0.3 s: raise --seconds" in answer.stdout


def test_ctrl_c(gateway):
    """Lines are shown as they are measured; Ctrl-C ends it with those that are there."""
    loads = ",".join(["1"] * 1000)
    command = [TENSORGATE, "bench", "classifier", "--concurrency", loads, *_SHORT, "--address", gateway.address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    assert _ROW.match(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert rest.splitlines()[-1].startswith("(1 row a request, closed loop")


def test_plot(bench, tmp_path):
    """A plot is drawn where matplotlib is installed."""
    pytest.importorskip("matplotlib")
    answer = bench("classifier", "--concurrency", "1,2", "--plot", tmp_path / "plot.svg")
    assert answer.returncode == 0, answer.stderr
    assert "<svg" in (tmp_path / "plot.svg").read_text()


def test_input_needs_as_many_rows_as_a_request(bench, tmp_path):
    """A file that is too short for one request is refused."""
    rows = write(tmp_path / "in.npy", x=np.zeros((1, 4), np.float32))
    assert "in.npy: no 2 rows to send" in bench("classifier", "--input", rows, "--rows", "2").refusal
