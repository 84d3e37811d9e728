"""`tensorgate predict`, interrupted: no row is lost or computed twice, and the result is the same to the byte."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
from support.commands import SEGMENT_ROWS, hurried, interrupted, peak_kib, segments, tensorgate, write

ROWS = 7 * SEGMENT_ROWS + 100


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows for seven segments of `moody` and a bit."""
    x = np.arange(ROWS, dtype=np.float32) + 0.5
    x[[17, 5000, ROWS - 1]] = 404
    return write(tmp_path_factory.mktemp("source") / "in.parquet", x=x)


@pytest.fixture
def command(gateway, source, tmp_path):
    """Arguments of `tensorgate predict` into a file of this name."""

    def arguments(name: str, *options: str) -> list[str | Path]:
        files = ("--input", source, "--output", tmp_path / name)
        return ["predict", "moody", *files, "--address", gateway.address, *options]

    return arguments


@pytest.mark.parametrize(("suffix", "seed"), [(".parquet", 1), (".npy", 2)])
def test_killed_anywhere_and_resumed(tmp_path, command, suffix, seed):
    """Killed at random places and resumed each time, a run ends with the very bytes of one that was left alone."""
    whole, pieced = tmp_path / f"whole{suffix}", tmp_path / f"pieced{suffix}"
    assert tensorgate(*command(whole.name)).returncode == 1
    places = sorted(random.Random(seed).sample(range(1, 8), 3))  # noqa: S311  # no secret
    for at in places:
        before = segments(pieced)
        code, _ = interrupted(signal.SIGKILL, lambda at=at: segments(pieced) >= at, *command(pieced.name, "--resume"))
        assert code == -signal.SIGKILL
        assert segments(pieced) >= max(before, at)
        assert not pieced.exists()
    assert tensorgate(*command(pieced.name, "--resume")).returncode == 1
    assert pieced.read_bytes() == whole.read_bytes()
    errors = [Path(f"{path}.errors.csv").read_bytes() for path in (pieced, whole)]
    assert errors[0] == errors[1]
    assert not Path(f"{pieced}.partial").exists()


def test_killed_within_a_block(tmp_path, command):
    """Where rows are kept as they come, a run that ends anywhere goes on from there and gives the same bytes."""
    whole, pieced = tmp_path / "whole.parquet", tmp_path / "pieced.parquet"
    assert tensorgate(*command(whole.name)).returncode == 1
    for at in (3, 50, 90):
        interrupted(
            signal.SIGKILL,
            lambda at=at: segments(pieced) >= at,
            *command(pieced.name, "--resume"),
            program=hurried(keep=0),
        )
        assert segments(pieced) >= at
    assert tensorgate(*command(pieced.name, "--resume")).returncode == 1
    assert pieced.read_bytes() == whole.read_bytes()
    errors = [Path(f"{path}.errors.csv").read_bytes() for path in (pieced, whole)]
    assert errors[0] == errors[1]


def test_resumed_once_more(tmp_path, gateway, predict):
    """A script that resumes until it is done may do so after it is done; a run for something else is still refused."""
    rows = write(tmp_path / "in.npy", x=np.zeros((10, 4), np.float32))
    target = tmp_path / "out.parquet"
    assert predict("classifier", rows, target, "--resume").returncode == 0
    if not os.listxattr(target):
        pytest.skip("a file system without extended attributes")
    again = predict("classifier", rows, target, "--resume")
    assert (again.returncode, again.stderr) == (0, f"{target} is complete already\n")
    assert "exists; --force replaces it" in predict("classifier", rows, target).refusal
    assert "exists; --force" in predict("classifier", rows, target, "--resume", "--select", "logits").refusal
    target.write_bytes(target.read_bytes() + b"more")
    assert "exists; --force" in predict("classifier", rows, target, "--resume").refusal


def test_a_broken_segment_is_computed_again(tmp_path, command):
    """What a broken disk has left of a segment costs its rows' time, and nothing else."""
    target = tmp_path / "out.npy"
    interrupted(signal.SIGKILL, lambda: segments(target) >= 3, *command(target.name))
    second = Path(f"{target}.partial/000001.arrow")
    second.write_bytes(second.read_bytes()[:1000])
    assert tensorgate(*command(target.name, "--resume")).returncode == 1
    np.testing.assert_array_equal(np.load(target)[:17, 0], np.arange(17) + 1.5)
    assert np.flatnonzero(np.isnan(np.load(target)[:, 0])).tolist() == [17, 5000, ROWS - 1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_ends(tmp_path, command, number):
    """Whatever ends a run, the user reads how to go on."""
    target = tmp_path / "out.npy"
    code, errors = interrupted(number, lambda: segments(target) >= 1, *command(target.name, "--quiet"))
    assert code == 128 + number
    first, second = errors.splitlines()
    assert first == f"tensorgate: ended by {number.name}"
    assert second.endswith("the same command with --resume goes on from there")


def test_ctrl_c(tmp_path, command, source):
    """Ctrl-C ends a run with a line that says how to go on; --resume goes on, and nothing else does by accident."""
    target = tmp_path / "out.npy"
    code, errors = interrupted(signal.SIGINT, lambda: segments(target) >= 2, *command(target.name, "--quiet"))
    assert code == 130
    first, second = errors.splitlines()
    assert first == "tensorgate: interrupted"
    kept = int(second.split()[1].replace(",", ""))
    assert kept == segments(target) * SEGMENT_ROWS
    assert "the same command with --resume goes on from there" in second
    again = tensorgate(*command(target.name))
    assert again.returncode == 2
    assert f"an interrupted run has left {kept:,} rows in {target}.partial: --resume goes on" in again.stderr
    assert (
        "--batch-size was 64, is now 16" in tensorgate(*command(target.name, "--resume", "--batch-size", "16")).stderr
    )
    other = tensorgate(*command(target.name, "--resume", "--map", "x=x", "--binary", "--select", "y", "--keep", "x"))
    assert (other.returncode, "--keep: .npy holds outputs only" in other.stderr) == (2, True)
    assert segments(target) * SEGMENT_ROWS == kept
    assert tensorgate(*command(target.name, "--resume")).returncode == 1
    assert len(np.load(target)) == ROWS


def test_another_run_is_not_gone_on_with(tmp_path, command, source):
    """What differs from the interrupted run is named; --restart throws its rows away."""
    target = tmp_path / "out.parquet"
    interrupted(signal.SIGKILL, lambda: segments(target) >= 1, *command(target.name))
    answer = tensorgate(*command(target.name, "--resume", "--keep", "x"))
    assert answer.returncode == 2
    assert f"--resume: this is not the run that left {target}.partial: --keep was nothing, is now x" in answer.stderr
    copy = write(tmp_path / "in.npy", x=np.zeros(10, np.float32))
    elsewhere = [copy if argument == source else argument for argument in command(target.name)]
    answer = tensorgate(*elsewhere, "--resume")
    assert (answer.returncode, f"--input was {source}" in answer.stderr) == (2, True)
    assert tensorgate(*elsewhere, "--restart").returncode == 0
    assert not Path(f"{target}.partial").exists()


def test_two_runs_at_once(tmp_path, command, source):
    """A second run into the same file is refused and disturbs nothing."""
    target = tmp_path / "out.npy"
    answers = []

    def meanwhile() -> bool:
        if segments(target) and not answers:
            answers.append(tensorgate(*command(target.name, "--resume")))
        return bool(answers)

    code, _ = interrupted(signal.SIGCONT, meanwhile, *command(target.name))
    assert code == 1
    assert len(np.load(target)) == ROWS
    assert "another run is writing it" in answers[0].stderr or "is complete already" in answers[0].stderr


def test_memory_stays_flat(tmp_path, gateway):
    """A file five times as large takes hardly more memory."""
    peaks = []
    for rows in (40_000, 200_000):
        x = np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)
        source = write(tmp_path / f"{rows}.parquet", x=x, more=np.repeat(x, 16, axis=1))
        files = ("--input", source, "--output", tmp_path / f"{rows}.out.parquet", "--keep", "more")
        peaks.append(peak_kib("predict", "classifier", *files, "--address", gateway.address))
    assert peaks[1] - peaks[0] < 32_000, peaks  # 160,000 rows more are 44 MB in and 46 MB out


def test_memory_stays_flat_for_wide_rows(tmp_path, gateway):
    """So it does where rows are large and the model leaves their size open."""
    peaks = []
    for rows in (60, 240):
        source = write(tmp_path / f"{rows}.npy", x=np.ones((rows, 250_000), np.float32))
        files = ("--input", source, "--output", tmp_path / f"{rows}.parquet")
        peaks.append(peak_kib("predict", "open", *files, "--address", gateway.address))
    assert peaks[1] - peaks[0] < 100_000, peaks  # 180 MB more in, and as much out
