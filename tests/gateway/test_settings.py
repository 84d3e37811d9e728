"""Settings of `tensorgate serve`, where they come from, and what is said of wrong ones."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.calls import ECHO, index, infer
from support.server import TENSORGATE, launch, serving

from gateway.settings import Settings
from tensorgate_client.wire import inference_pb2 as pb


def tensorgate(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """A `tensorgate` command that ends by itself."""
    return subprocess.run(
        [TENSORGATE, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.fixture
def toml(tmp_path) -> Path:
    """A settings file that chooses a free port."""
    file = tmp_path / "gateway.toml"
    file.write_text("port = 0\n")
    return file


def add_line(file: Path, line: str) -> None:
    """Add a line to the settings file."""
    file.write_text(f"{file.read_text()}{line}\n")


@pytest.mark.parametrize(("sources", "expected"), [(0, 32), (1, 8), (2, 7), (3, 6)])
def test_flags_beat_environment_beat_file_beat_defaults(repository, toml, sources, expected):
    """A setting given in several places holds as the nearest one says: flag, environment, TOML file, default."""
    repository.add("m", config=ECHO)
    if sources >= 1:
        add_line(toml, "default_max_batch_size = 8")
    environment = {"TENSORGATE_DEFAULT_MAX_BATCH_SIZE": "7"} if sources >= 2 else {}
    flags = ["--default-max-batch-size", "6"] if sources >= 3 else []
    with serving(repository.root, "--config", toml, *flags, environment=environment) as gateway:
        config = gateway.stub.ModelConfig(pb.ModelConfigRequest(name="m")).config
        assert config.max_batch_size == expected


def test_everything_may_come_from_the_environment(repository):
    """A container needs no arguments: all settings, the file of settings too, may be environment variables."""
    file = repository.root.parent / "settings.toml"
    file.write_text(f'model_repository = "{repository.root}"\n')
    repository.add("m", config=ECHO)
    environment = {"TENSORGATE_CONFIG": str(file), "TENSORGATE_PORT": "0", "TENSORGATE_HOST": "0.0.0.0"}  # noqa: S104
    with launch(environment=environment) as server:
        assert server.wait_until_ready().startswith("0.0.0.0:")


@pytest.mark.parametrize(
    ("flags", "environment", "line"),
    [
        (["--load-model", "a", "--load-model", "b"], {}, ""),
        (["--load-model", "a,b"], {}, ""),
        ([], {"TENSORGATE_LOAD_MODEL": "a, b"}, ""),
        ([], {}, 'load_model = ["a", "b"]'),
        ([], {}, 'load_model = "a,b"'),
    ],
)
def test_models_to_load_are_a_list_everywhere(repository, toml, flags, environment, line):
    """Several names: a repeated flag, commas in a flag or the environment, a list or commas in the TOML file."""
    for name in "abc":
        repository.add(name, config=ECHO)
    add_line(toml, line)
    explicit = ("--config", toml, "--model-control", "explicit")
    with serving(repository.root, *explicit, *flags, environment=environment) as gateway:
        assert set(index(gateway, ready=True)) == {"a/1", "b/1"}


WRONG_FLAGS = [
    ([], "--model-repository is required (or TENSORGATE_MODEL_REPOSITORY, or model_repository in the --config file)"),
    (["--model-repository", "/no/such"], "--model-repository: no such directory: /no/such"),
    (["--model-repository", __file__], f"--model-repository: not a directory: {__file__}"),
    (["--model-repository", ".", "--port", "http"], "--port: expected a valid integer, got 'http'"),
    (["--model-repository", ".", "--port", "65536"], "--port: expected less than or equal to 65535, got '65536'"),
    (["--model-repository", ".", "--metrics-port", "on"], "--metrics-port: expected a valid integer, got 'on'"),
    (
        ["--model-repository", ".", "--shutdown-grace-s", "inf"],
        "--shutdown-grace-s: expected a finite number, got 'inf'",
    ),
    (
        ["--model-repository", ".", "--load-model", "m"],
        "load_model needs --model-control explicit: 'none' loads every model",
    ),
    (
        ["--model-repository", ".", "--ray-address", "head:6379"],
        "--ray-address needs --engine ray: without it, instances run in this process",
    ),
    (["--config", "/no/such.toml"], "--config: no such file: /no/such.toml"),
]


@pytest.mark.parametrize(("flags", "line"), WRONG_FLAGS)
def test_wrong_flag_is_one_clear_line(flags, line):
    """A missing or wrong flag is named in one line on stderr, and the exit code is 2."""
    result = tensorgate("serve", *flags)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"tensorgate: {line}\n")


def test_unknown_choice_or_flag_is_one_clear_line():
    """A flag that does not exist, or a choice that is none, is named; the exit code is 2."""
    for flags, expected in ((["--model-control", "magic"], "magic"), (["--ports", "1"], "--ports")):
        result = tensorgate("serve", "--model-repository", ".", *flags)
        assert (result.returncode, result.stdout) == (2, "")
        assert expected in result.stderr.splitlines()[-1]


def test_wrong_environment_names_the_variable():
    """A wrong value from the environment is reported under the variable's own name."""
    result = tensorgate("serve", "--model-repository", ".", TENSORGATE_PORT="http")
    assert result.returncode == 2
    assert result.stderr == "tensorgate: TENSORGATE_PORT: expected a valid integer, got 'http'\n"


def test_empty_environment_variable_counts_as_none(repository):
    """A compose file's empty `TENSORGATE_LOG_LEVEL=` means the default, not an error."""
    with serving(repository.root, environment={"TENSORGATE_LOG_LEVEL": ""}) as gateway:
        assert gateway.stub.ServerReady(pb.ServerReadyRequest()).ready


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('port = "http"', "{file}: port: expected a valid integer, got 'http'"),
        ("portt = 1", "{file}: unknown setting 'portt': expected one of model_repository, host, port, "),
        ("port = = 1", "{file}: Invalid value"),
        ("\udcff", "{file}: 'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_wrong_settings_file_is_one_clear_line(tmp_path, line, message):
    """A wrong value, an unknown key or broken TOML is one line that names the file, and the exit code is 2."""
    file = tmp_path / "gateway.toml"
    file.write_bytes(line.encode(errors="surrogateescape"))
    result = tensorgate("serve", "--model-repository", ".", "--config", file)
    assert result.returncode == 2
    assert result.stderr.startswith(f"tensorgate: {message.format(file=file)}")
    assert result.stderr.count("\n") == 1


def test_what_is_missing_is_named(repository, tmp_path):
    """Asked for an engine that is not installed, the server says what to install."""
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['ray'] = None")
    found_first = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    result = tensorgate("serve", "--model-repository", repository.root, "--engine", "ray", PYTHONPATH=found_first)
    told = "tensorgate: --engine ray: not installed: pip install 'tensorgate[ray]'\n"
    assert (result.returncode, result.stderr) == (2, told)


@pytest.mark.parametrize("carrier", ["native", "grpcio"])
def test_port_in_use_is_one_clear_line(repository, carrier):
    """A taken port ends the start at once with one line and exit code 1."""
    serve = ("serve", "--model-repository", repository.root, "--transport", carrier)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = tensorgate(*serve, "--port", port)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith(f"tensorgate: cannot listen on 127.0.0.1:{port}: the port is taken or ")


def test_metrics_port_in_use_is_one_clear_line(repository):
    """A taken port for the metrics ends the start at once, and the line says how to go on."""
    serve = ("serve", "--model-repository", repository.root, "--port", "0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = tensorgate(*serve, "--metrics-port", port)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith(f"tensorgate: cannot serve metrics on 127.0.0.1:{port}: the port is taken or ")
    assert result.stderr.endswith("; --metrics-port chooses another, '--metrics-port off' does without\n")


@pytest.mark.parametrize(
    ("flags", "environment", "line"),
    [
        (["--metrics-port", "off"], {}, ""),
        ([], {"TENSORGATE_METRICS_PORT": "off"}, ""),
        ([], {"TENSORGATE_METRICS_PORT": ""}, 'metrics_port = "off"'),
    ],
)
def test_the_metrics_can_be_turned_off(repository, toml, flags, environment, line):
    """Whoever wants no metrics says `off` where a port would be, wherever that is."""
    repository.add("m", config=ECHO)
    add_line(toml, line)
    with serving(repository.root, "--config", toml, *flags, environment=environment) as gateway:
        assert infer(gateway, "m").shape == (1, 4)
        assert "metrics on" not in gateway.server.log


def test_ipv6_address(repository):
    """An IPv6 address is an address like any other."""
    repository.add("m", config=ECHO)
    with launch("--model-repository", repository.root, "--host", "::1", "--port", "0") as server:
        server.wait_for_log(r"ready: gRPC on \[::1\]:\d+|cannot listen on \[::1\]:0")


def test_model_in_the_place_of_the_repository_gives_a_hint(repository):
    """Pointing at a model's folder instead of the repository's is answered with the folder to use."""
    folder = repository.add("m", config=ECHO)
    with serving(folder) as gateway:
        hint = f"{folder} looks like one model; a repository is the folder around it: {repository.root}"
        assert hint in gateway.server.log


def test_help_lists_every_setting_with_its_default():
    """`tensorgate serve --help` has every setting, what it means and what holds without it."""
    result = tensorgate("serve", "--help", COLUMNS="1000")
    assert result.returncode == 0
    text = " ".join(result.stdout.split())
    for name, field in Settings.model_fields.items():
        assert re.search(f" --{name.replace('_', '-')}[ ,]", text)
        default = "none" if field.default in ((), None) else field.default
        assert f"{field.description} ({'required' if field.is_required() else f'default: {default}'})" in text


def test_ctrl_c_while_it_starts_ends_it_quietly():
    """Whoever presses Ctrl-C at once gets the prompt back, and no traceback of an import."""
    code = """if True:
        import signal, sys

        class Interrupting:
            def find_spec(self, name, *_):
                if name == "gateway.settings":
                    signal.raise_signal(signal.SIGINT)

        sys.meta_path.insert(0, Interrupting())
        from gateway.__main__ import main
        main()
    """
    result = subprocess.run(
        [sys.executable, "-c", code, "--version"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


def test_version_and_backends():
    """`tensorgate --version` and `tensorgate backends` answer at once, without a server."""
    assert re.fullmatch(r"tensorgate \d+\.\d+\.\d+\n", tensorgate("--version").stdout)
    backends = tensorgate("backends")
    assert backends.returncode == 0
    rows = {line.split()[0]: line for line in backends.stdout.splitlines()}
    assert {"onnxruntime", "torch", "python", "echo"} <= rows.keys()
    assert "model.onnx" in rows["onnxruntime"]
    assert rows["echo"].endswith("installed")
