"""`tensorgate profile`: which operators a model spends its time in, whatever that time is."""

from __future__ import annotations

import json
import re

import pytest
from support.commands import TWO, tensorgate, write
from support.models import RepositoryBuilder
from support.profiling import TIMED

RUNS = 7

_HEAD = re.compile(
    r"(?P<model>\w+) version (?P<version>\d+) on (?P<backend>\w+), (?P<runs>[\d,]+) runs? of (?P<rows>[\d,]+) rows?: "
    r"p50 [\d,.]+ ms, p99 [\d,.]+ ms; with (?P<profiler>.+) [\d,.]+ and [\d,.]+ ms"
)
_CALLS = re.compile(r"^(?P<name>\S.*?)  +(?P<calls>[\d,]+)  +[\d,.]+  +[\d,.]+  +[\d.]+  +[\d,.]+$", re.MULTILINE)


def calls(answer):
    """How often each operator of the table was called."""
    assert answer.returncode == 0, answer.stderr
    return {match["name"]: int(match["calls"].replace(",", "")) for match in _CALLS.finditer(answer.stdout)}


def fields(answer):
    """The JSON that was printed."""
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def test_table(profile):
    """The table says what was run, then where its time went: operators, those that took most of it first."""
    answer = profile("classifier", "--version", "1", "--runs", RUNS, "--rows", "3")
    head, blank, *_, note = answer.stdout.splitlines()
    assert _HEAD.fullmatch(head).groupdict() == {
        "model": "classifier",
        "version": "1",
        "backend": "onnxruntime",
        "runs": str(RUNS),
        "rows": "3",
        "profiler": "ONNX Runtime's profiler",
    }
    assert (blank, note[0], answer.stderr) == ("", "(", "")
    assert calls(answer) == {"Gemm": RUNS, "Softmax": RUNS}


def test_parts_make_up_the_whole(profile):
    """What the operators took and what lies outside of them add up to the time of the runs."""
    found = fields(profile("classifier", "--version", "1", "--runs", RUNS, "--json"))
    lines = found["operators"]
    assert [line["self_ms"] for line in lines] == sorted((line["self_ms"] for line in lines), reverse=True)
    shares = sum(line["share_percent"] for line in lines) + found["outside_operators"]["share_percent"]
    assert shares == pytest.approx(100, abs=0.5)
    assert 0 < found["p50_ms"] <= found["p99_ms"]
    assert 0 < found["profiled_p50_ms"] <= found["profiled_p99_ms"]


def test_nodes(profile):
    """Two operators of a kind are told apart by their names in the graph."""
    answer = profile("unfused", "--runs", RUNS, "--by", "node")
    assert calls(answer) == {"dense (Gemm)": RUNS, "cut (Relu)": RUNS}


def test_as_the_server_loads_it(profile):
    """What config.pbtxt sets holds: with the graph left alone there are two operators where there was one."""
    assert list(calls(profile("fused", "--runs", RUNS))) == ["FusedGemm"]
    assert sorted(calls(profile("unfused", "--runs", RUNS))) == ["Gemm", "Relu"]


def test_operators_inside_others(profile):
    """What runs inside a Loop is counted each time, and its time is in the Loop's total but not in its self time."""
    found = {line["operator"]: line for line in fields(profile("loop", "--runs", RUNS, "--json"))["operators"]}
    assert (found["Loop"]["calls"], found["MatMul"]["calls"]) == (RUNS, 3 * RUNS)
    inside = sum(line["total_ms"] for name, line in found.items() if name != "Loop")
    assert found["Loop"]["self_ms"] == pytest.approx(found["Loop"]["total_ms"] - inside, abs=0.01)


@pytest.mark.parametrize("model", ["linear_pt2", "linear_pt"])
def test_torch(profile, model):
    """A PyTorch model's operators have torch's names, or with their inputs' shapes where they are to be told apart."""
    answer = profile(model, "--runs", RUNS, "--top", "100")
    assert _HEAD.match(answer.stdout)["profiler"] == "torch.profiler"
    assert calls(answer)["aten::addmm"] == RUNS
    apart = calls(profile(model, "--runs", RUNS, "--rows", "5", "--by", "node", "--top", "100"))
    assert apart["aten::addmm [3] [5,4] [4,3]"] == RUNS


def test_python(profile):
    """A model.py's functions have their lines, and nothing of the waiting between the runs is among them."""
    answer = profile("two", "--runs", RUNS, "--top", "100")
    found = calls(answer)
    line = TWO.splitlines().index("    def execute(self, inputs):") + 1
    assert found[f"1/model.py:{line} execute"] == RUNS
    assert not [name for name in found if "queue" in name.lower() or "lsprof" in name]
    assert _HEAD.match(answer.stdout)["profiler"] == "cProfile"


@pytest.mark.parametrize(("model", "event"), [("unfused", "dense_kernel_time"), ("linear_pt2", "aten::addmm")])
def test_trace(profile, tmp_path, model, event):
    """The trace has every call of the measured runs and none of the warm-up; nothing else is left behind."""
    trace = tmp_path / "trace.json"
    assert profile(model, "--runs", RUNS, "--trace", trace).returncode == 0
    events = json.loads(trace.read_text())["traceEvents"]
    assert sum(e.get("name") == event for e in events) == RUNS
    assert not list((tmp_path / "here").iterdir())


def test_rows_of_a_file(profile, tmp_path):
    """A file's first rows are what the model runs on."""
    good = write(tmp_path / "good.csv", a=[1.0, 2.0], b=[0, 0])
    assert calls(profile("moody", "--input", good, "--map", "x=a", "--rows", "2", "--runs", RUNS))


def test_lines_that_are_cut(profile):
    """What --top leaves out of the table is in one line of it, so that nothing seems to be missing."""
    answer = profile("classifier", "--version", "1", "--runs", RUNS, "--top", "1")
    (cut,) = (line for line in answer.stdout.splitlines() if line.startswith("(1 more)"))
    assert cut.split()[2] == str(RUNS)
    assert len(fields(profile("classifier", "--version", "1", "--top", "1", "--json"))["operators"]) == 2


def test_version(profile):
    """The latest version is profiled, as it is served; an older one on demand."""
    assert _HEAD.match(profile("classifier", "--runs", RUNS).stdout)["version"] == "2"
    assert _HEAD.match(profile("classifier", "--runs", RUNS, "--version", "1").stdout)["version"] == "1"


def test_settings_of_the_server(profile, monkeypatch):
    """The server's limit of rows is this command's, by its flag or its environment variable."""
    rows = ("classifier", "--rows", "40", "--runs", RUNS)
    assert "--rows: model 'classifier' takes up to 32 rows (max_batch_size), got 40" in profile(*rows).refusal
    assert calls(profile(*rows, "--default-max-batch-size", "40"))
    monkeypatch.setenv("TENSORGATE_DEFAULT_MAX_BATCH_SIZE", "64")
    assert calls(profile(*rows))


def test_nothing_but_the_table(profiled):
    """A process of its own writes the table and nothing of torch's own messages."""
    answer = tensorgate("profile", "linear_pt2", "--runs", "3", "--model-repository", profiled)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert _HEAD.match(answer.stdout)


def test_a_backend_of_somebody_elses(here, tmp_path, monkeypatch):
    """A backend that somebody else published offers its profiler with nothing of ours imported."""
    (tmp_path / "timed_backend.py").write_text(TIMED)
    installed = tmp_path / "timed_backend-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: timed-backend\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[tensorgate.backends]\ntimed = timed_backend:Backend\n")
    monkeypatch.syspath_prepend(tmp_path)
    repository = RepositoryBuilder(tmp_path / "models")
    repository.add("copied", {"model.timed": "nothing"})
    answer = here("profile", "copied", "--runs", RUNS, "--model-repository", repository.root)
    assert calls(answer) == {"Copy": RUNS}
    assert _HEAD.match(answer.stdout)["profiler"] == "a stopwatch"
