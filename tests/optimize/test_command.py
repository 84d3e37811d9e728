"""`tensorgate optimize` as its users run it: a recipe in, a model repository and a report out."""

from __future__ import annotations

import fcntl
import html
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from contextlib import suppress

import pytest
from sklearn.datasets import load_digits
from support.commands import interrupted, tensorgate
from support.optimize import DIGITS, OWN_TECHNIQUES, STUCK, report_of, variants
from support.server import TENSORGATE, serving

from tensorgate_client import InferenceClient

BUDGET = "accuracy>=0.3"
QUICK = ("--seconds", "0.05", "--concurrency", "4")


def on_terminal(*arguments):
    """The exit code of a command, what it said, and what it drew on a terminal that its stderr is."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    with subprocess.Popen(
        [TENSORGATE, *map(str, arguments)], stdout=subprocess.PIPE, stderr=theirs, text=True
    ) as process:
        os.close(theirs)
        drawn = b""
        with suppress(OSError):  # how it shows that the other end is closed
            while data := os.read(ours, 4096):
                drawn += data
        os.close(ours)
        said, _ = process.communicate()
    return process.returncode, said, drawn.decode()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The command's end, and the repository that it wrote: a recipe with ONNX and with techniques that go wrong."""
    folder = tmp_path_factory.mktemp("optimize")
    recipe, output = folder / "digits.py", folder / "models"
    recipe.write_text(DIGITS + OWN_TECHNIQUES)
    only = "onnx,disturbed,crashing,unloadable,impossible,treacherous"
    ended = tensorgate("optimize", recipe, "--output", output, "--only", only, "--budget", BUDGET, *QUICK)
    assert ended.returncode == 0, ended.stderr
    return ended, output


@pytest.fixture(scope="module")
def found(run):
    """The rows of the report."""
    return variants(report_of(run[1]))


def test_every_combination_has_a_row(found):
    """What was tried is in the report with what became of it, whether it worked or not."""
    assert {name: row["state"] for name, row in found.items()} == {
        "original": "measured",
        "onnx": "measured",
        "disturbed": "network",
        "disturbed_onnx": "measured",
        "crashing": "failed",
        "unloadable": "failed",
        "impossible": "skipped",
        "treacherous": "failed",
    }


def test_sabotage_shows(found):
    """A network whose weights were disturbed loses accuracy, by more than chance explains, and the report says so."""
    drop = found["disturbed_onnx"]["figures"]["drop"]
    assert drop["value"] > drop["low"] > 0
    assert found["disturbed_onnx"]["figures"]["agreement"]["logits"]["same_argmax"] < 1
    assert any("less accurate than the original, beyond chance" in said for said in found["disturbed_onnx"]["remarks"])
    assert found["disturbed"]["figures"]["drop"] == drop


def test_an_export_changes_nothing(found):
    """A mere export has the original's accuracy and outputs, measured through the gateway."""
    figures = found["onnx"]["figures"]
    assert figures["drop"]["value"] == 0
    assert figures["drop"]["low"] < 0 < figures["drop"]["high"]
    agreement = figures["agreement"]["logits"]
    assert (agreement["rows"], agreement["same_argmax"]) == (597, 1)
    assert agreement["worst_cosine"] == pytest.approx(1, abs=1e-5)


def test_figures_hold_together(found):
    """Latencies are in order, a file has a size, a server with a model needs more memory than the model's file."""
    for name in ("original", "onnx", "disturbed_onnx"):
        figures = found[name]["figures"]
        for latency in (figures["served"]["alone"], figures["served"]["loaded"], figures["bare"]["latency"]):
            assert 0 < latency["p50_ms"] <= latency["p95_ms"] <= latency["p99_ms"], name
        assert 0 < figures["size_bytes"] < figures["served"]["memory_bytes"]
        assert figures["served"]["rows_per_s"] > 0
        assert str(figures["batching"]["max_batch_size"]) in figures["bare"]["curve"]


def test_reasons(found):
    """A crash, of a step or of the server, a file that does not load and an obstacle are each told in words."""
    assert "was killed by SIGABRT" in found["crashing"]["reason"]
    assert "LoadError" in found["unloadable"]["reason"]
    assert found["impossible"]["reason"] == "needs what nobody has"
    assert found["treacherous"]["reason"] == "made, but not served: the server was killed by SIGABRT"


def test_repository_is_served(run, found):
    """All that was measured is served at once from the folder, with the accuracy that was reported; nothing else is."""
    _, output = run
    images, labels = load_digits(return_X_y=True)
    images, labels = images[1200:].astype("float32"), labels[1200:]
    with serving(output) as gateway, InferenceClient(gateway.address) as client:
        index = {model.name: model.state for model in client.index()}
        assert index == dict.fromkeys(("original", "onnx", "disturbed_onnx"), "READY")
        for name in index:
            rows = client.config(name).max_batch_size
            assert rows == found[name]["figures"]["batching"]["max_batch_size"]
            right = sum(
                int(
                    (
                        client.infer(name, {"pixels": images[at : at + rows]})["logits"].argmax(1)
                        == labels[at : at + rows]
                    ).sum()
                )
                for at in range(0, len(images), rows)
            )
            assert right / len(labels) == pytest.approx(found[name]["figures"]["accuracy"]["value"])
    assert (output / ".unserved" / "unloadable" / "1" / "model.onnx").read_bytes() == b"no model"


def test_winner(run, found):
    """The smallest of those that come within 10 % of the most rows/s wins; the command says how to serve it alone."""
    ended, output = run
    figures = {name: row["figures"] for name, row in found.items() if row["state"] == "measured"}
    most = max(measured["served"]["rows_per_s"] for measured in figures.values())
    near = {name: measured for name, measured in figures.items() if measured["served"]["rows_per_s"] >= 0.9 * most}
    winner = min(near, key=lambda name: near[name]["size_bytes"])
    assert report_of(output)["winner"] == winner
    best = "Nothing is better than the original" if winner == "original" else "The winner"
    assert re.search(rf"^{best} under {BUDGET}: {winner}, ", ended.stdout, re.MULTILINE)
    assert f"--model-repository {output} --model-control explicit --load-model {winner}" in ended.stdout
    assert winner in report_of(output)["front"]


def test_profile_comes_first(run):
    """Where the original's time goes is said before anything is tried."""
    ended, output = run
    assert ended.stdout.index("aten::addmm") < ended.stdout.index("original ")
    operations = {operation["name"]: operation for operation in report_of(output)["profile"]["operations"]}
    assert operations["aten::addmm"]["calls"] == report_of(output)["profile"]["runs"]


def test_pages(run, found):
    """The page and the Markdown have every variant and reason; the page loads nothing from anywhere."""
    _, output = run
    page, text = (output / "report.html").read_text(), (output / "report.md").read_text()
    for row in found.values():
        for written in (page, text):
            assert row["name"] in written
        assert html.escape(row["reason"]) in page
        assert row["reason"] in text
    assert page.count("<circle") == 3
    assert not re.search(r"https?:|src=|@import|url\(", page)
    assert "Noise was added." in page
    assert "Noise was added." in text


def test_an_earlier_run_is_not_overwritten(here, run):
    """A folder that holds a run is left alone without --force, and one that holds anything else is always."""
    _, output = run
    recipe = output.parent / "digits.py"
    assert "--force replaces it" in here("optimize", recipe, "--output", output).refusal
    assert "is not empty" in here("optimize", recipe, "--output", output.parent, "--force").refusal
    assert recipe.is_file()


def test_evaluate_that_fails(here, tmp_path):
    """An evaluate that fails on the original ends the command, with its line; nothing was found out."""
    recipe, output = tmp_path / "digits.py", tmp_path / "models"
    recipe.write_text(DIGITS.replace("argmax(1)", "argmax(7)"))
    line = recipe.read_text().splitlines().index("    return predict(images[1200:]).argmax(7) == labels[1200:]") + 1
    ended = here("optimize", recipe, "--output", output, *QUICK)
    assert ended.returncode == 2
    assert ended.stderr == f"tensorgate: {recipe}:{line}: AxisError: axis 7 is out of bounds for array of dimension 2\n"


def test_no_winner(tmp_path):
    """Networks that miss the budget by more than chance become no files, and nothing wins; a bar shows the time."""
    recipe, output = tmp_path / "digits.py", tmp_path / "models"
    recipe.write_text(DIGITS + OWN_TECHNIQUES)
    flags = ("--output", output, "--only", "onnx,disturbed", "--budget", "accuracy>=0.99")
    code, said, drawn = on_terminal("optimize", recipe, *flags, *QUICK)
    assert code == 1, said
    assert "No variant keeps to accuracy>=0.99.\noriginal comes nearest and misses accuracy>=0.99: " in said
    assert re.search(r"disturbed_onnx: +75%\|[^|]*\| 3/4 \[[\d:]+<[\d:]+, ", drawn), drawn
    report = report_of(output)
    assert (report["winner"], report["nearest"]) == (None, "original")
    found = variants(report)
    assert {name: found[name]["state"] for name in found if name.endswith("onnx")} == {
        "onnx": "skipped",
        "disturbed_onnx": "skipped",
    }
    assert re.fullmatch(r"original has accuracy 0.\d+, and the budget wants accuracy>=0.99", found["onnx"]["reason"])
    assert found["disturbed_onnx"]["reason"].startswith("disturbed has accuracy ")


def test_interrupted(tmp_path):
    """Ctrl-C ends it at once, with exit code 130; what was measured until then is reported, and can be served."""
    recipe, output, marker = tmp_path / "digits.py", tmp_path / "models", tmp_path / "stuck"
    recipe.write_text(DIGITS + STUCK.format(marker=str(marker)))
    flags = ("--output", output, "--only", "stuck", *QUICK)
    code, errors = interrupted(signal.SIGINT, marker.exists, "optimize", recipe, *flags)
    assert (code, errors) == (130, "")
    report = report_of(output)
    assert (report["run"]["unfinished"], list(variants(report))) == ("interrupted", ["original"])
    assert "interrupted after 1 of 2 variants" in (output / "report.md").read_text()
    assert sorted(path.name for path in output.iterdir() if path.is_dir()) == ["original"]
    assert subprocess.run(["pgrep", "-f", str(tmp_path)], check=False, capture_output=True).stdout == b""
