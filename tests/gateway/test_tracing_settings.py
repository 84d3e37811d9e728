"""What decides whether a call is traced, and what happens where nobody takes the traces."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest
from grpc import StatusCode as Code
from support.calls import ECHO, Gate, eventually, refusal, request
from support.concurrent import POISON, moody, start, values
from support.models import RepositoryBuilder
from support.otlp import Collector, collecting
from support.server import Gateway, launch, serving

from tensorgate_client.wire import inference_pb2 as pb

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Takes what a server exports."""
    with collecting() as collector:
        yield collector


@pytest.fixture
def models(repository: RepositoryBuilder):
    """A model that gives back what it gets, and a second one."""
    repository.add("plain", {}, ECHO)
    repository.add("other", {}, ECHO)
    return repository.root


def call(gateway: Gateway, number: str = "", model: str = "plain", **metadata: str) -> None:
    """A good call."""
    message = request(model, {"INPUT0": np.ones((1, 4), np.float32)})
    message.id = number
    gateway.stub.ModelInfer(message, timeout=60, metadata=tuple(metadata.items()))


def numbers(collector: Collector) -> set[str]:
    """The ids of the requests that came to be traced."""
    return {span.attributes.get("tensorgate.request.id", "") for span in collector.named("ModelInfer")}


def change(gateway: Gateway, model: str = "", **settings: str | None) -> dict[str, list[str]]:
    """What TraceSetting answers; None clears a setting."""
    message = pb.TraceSettingRequest(model_name=model)
    for name, value in settings.items():
        message.settings[name].value.extend([] if value is None else [value])
    answer = gateway.stub.TraceSetting(message, timeout=60)
    return {name: list(setting.value) for name, setting in answer.settings.items()}


def last(collector: Collector, gateway: Gateway, number: str = "last") -> None:
    """Have the collector get one more call, by which all before it have come."""
    call(gateway, number, traceparent=TRACEPARENT)
    collector.wait("ModelInfer", where=lambda span: span.attributes.get("tensorgate.request.id") == number)


def test_nothing_is_traced_unasked(models, collector: Collector):
    """Where neither a flag nor the environment asks for traces, there are none, and TraceSetting says so."""
    with serving(models, environment={"OTEL_BSP_SCHEDULE_DELAY": "50"}) as gateway:
        call(gateway, traceparent=TRACEPARENT)
        assert change(gateway)["trace_level"] == ["OFF"]


def test_a_rate_of_none_leaves_it_to_the_callers(models, collector: Collector):
    """With a rate of 0 those calls are traced whose callers trace them."""
    with serving(models, "--trace-rate", "0", environment=collector.environment()) as gateway:
        for number in range(20):
            call(gateway, f"own {number}")
        last(collector, gateway)
    assert numbers(collector) == {"last"}


def test_a_rate_is_kept(models, collector: Collector):
    """Of many calls about the given share is traced."""
    with serving(models, "--trace-rate", "0.2", environment=collector.environment()) as gateway:
        for number in range(1000):
            call(gateway, str(number))
        last(collector, gateway)
    assert 120 < len(numbers(collector)) < 280  # six standard deviations around 200


def test_faults_and_slow_calls_are_kept(tmp_path, repository: RepositoryBuilder, collector: Collector):
    """What fails by the server's fault, or takes too long, is traced though it was not sampled; nothing else is."""
    gate = Gate(tmp_path / "gate")
    gate.open()
    repository.add("moody", moody(gate), gate.config + "max_batch_size: 1")
    flags = ("--trace-rate", "0", "--trace-slow-ms", "2000")
    with serving(repository.root, *flags, environment=collector.environment()) as gateway:
        values(start(gateway, "moody", 1, id="well"))
        refusal(lambda: start(gateway, "moody", POISON, id="fault").result(60))
        refusal(lambda: start(gateway, "nobody", 1, id="theirs").result(60))
        collector.wait("ModelInfer")
        gate.shut()
        slow = start(gateway, "moody", 2, id="slow")
        eventually(lambda: len(gate.begun()) >= 3)
        # Longer than --trace-slow-ms, by the server's own clock.
        waited = start(gateway, "moody", 3, id="expired", timeout=2.5)
        assert refusal(lambda: waited.result(60))[0] is Code.DEADLINE_EXCEEDED
        gate.open()
        values(slow)
        collector.wait("ModelInfer", 2)
        eventually(lambda: "slow" in numbers(collector))
    assert {"fault", "slow"} <= numbers(collector) <= {"fault", "slow", "expired"}


def test_opentelemetrys_variables(models, collector: Collector):
    """Resource, service name, headers and sampler come from OpenTelemetry's environment variables, over HTTP, too."""
    environment = collector.environment(
        "http/protobuf",
        OTEL_SERVICE_NAME="checkout",
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test,team=vision",
        OTEL_EXPORTER_OTLP_HEADERS="x-key=secret",
        OTEL_TRACES_SAMPLER="always_on",
    )
    with serving(models, environment=environment) as gateway:
        call(gateway, "one", traceparent=TRACEPARENT[:-2] + "00")  # always_on does not ask the caller
        (span,) = collector.wait("ModelInfer")
    assert span.resource["service.name"] == "checkout"
    assert span.resource["deployment.environment.name"] == "test"
    assert span.resource["team"] == "vision"
    assert collector.headers[0]["x-key"] == "secret"


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"OTEL_TRACES_SAMPLER": "sometimes"}, "OTEL_TRACES_SAMPLER: expected always_on, .*, got 'sometimes'"),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "half"},
            "OTEL_TRACES_SAMPLER_ARG: expected a number from 0 to 1, got 'half'",
        ),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "expected grpc or http/protobuf, got 'http/json'"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: 'zipkin' is not installed"),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "abc"}, "OpenTelemetry's variables for exporter 'otlp': .*abc"),
    ],
)
def test_wrong_variables_are_told(models, environment: dict[str, str], told: str):
    """A variable with a value that cannot be gone by ends the start with a line that names it."""
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", **environment}
    flags = ("--model-repository", models, "--port", "0", "--metrics-port", "off")
    with launch(*flags, environment=environment) as server:
        assert server.wait() == 2
        assert re.search(told, server.log)
        assert "Traceback" not in server.log


@pytest.mark.parametrize("switch", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}])
def test_switched_off_by_the_sdks_own_switch(models, collector: Collector, switch: dict[str, str]):
    """OTEL_SDK_DISABLED, and an exporter `none`, win over whatever else asks for traces, TraceSetting included."""
    with serving(models, "--trace-rate", "1", environment=collector.environment(**switch)) as gateway:
        call(gateway)
        assert change(gateway)["trace_level"] == ["OFF"]
        code, told = refusal(lambda: change(gateway, trace_level="TIMESTAMPS"))
        assert code is Code.FAILED_PRECONDITION
        assert next(iter(switch)) in told


def test_an_empty_variable_is_none(models, collector: Collector):
    """An empty OTEL_TRACES_EXPORTER is as good as none at all, as OpenTelemetry has it."""
    with serving(models, environment=collector.environment(OTEL_TRACES_EXPORTER="")) as gateway:
        last(collector, gateway)


def test_a_model_follows_in_what_it_has_no_value_for(models, collector: Collector):
    """A model with one setting of its own follows the settings of all models in the others."""
    with serving(models, "--trace-rate", "1", environment=collector.environment()) as gateway:
        change(gateway, "other", trace_rate="5")
        change(gateway, trace_rate="5")
        change(gateway, trace_rate="100")
        assert change(gateway, "other")["trace_rate"] == ["5"]
        change(gateway, trace_level="OFF")
        assert change(gateway, "other")["trace_level"] == ["OFF"]
        change(gateway, "other", trace_rate=None)
        assert change(gateway, "other")["trace_rate"] == ["100"]


def test_a_models_count_runs_down_and_can_be_raised(models, collector: Collector):
    """A model's own count is of its own calls, whatever changes for the others meanwhile, and can be set anew."""
    with serving(models, "--trace-rate", "1", environment=collector.environment()) as gateway:
        change(gateway, "other", trace_count="2")
        for number in range(3):
            call(gateway, f"first {number}", "other")
        change(gateway, trace_rate="1")
        assert change(gateway, "other")["trace_count"] == ["0"]
        assert change(gateway, "other", trace_count="1")["trace_count"] == ["1"]
        for number in range(3):
            call(gateway, f"second {number}", "other")
        last(collector, gateway)
    assert numbers(collector) == {"first 0", "first 1", "second 0", "last"}


def test_what_callers_choose_is_cut(models, collector: Collector):
    """One caller's enormous id, or a trace state that is none, costs no other caller's spans and no line in the log."""
    with serving(models, "--trace-rate", "1", environment=collector.environment()) as gateway:
        call(gateway, "B" * 20_000_000, traceparent=TRACEPARENT, tracestate="no state " + "z" * 2000)
        last(collector, gateway)
        assert max(map(len, numbers(collector))) == 256
        assert "tracestate" not in gateway.server.log.lower()


def test_settings_change_while_it_runs(models, collector: Collector):
    """TraceSetting turns tracing on and off, for all models or one, and gives back what holds."""
    with serving(models, environment=collector.environment(OTEL_TRACES_SAMPLER="parentbased_always_off")) as gateway:
        call(gateway, "before")
        shown = change(gateway, trace_rate="1")
        assert shown == {
            "trace_level": ["TIMESTAMPS"],
            "trace_rate": ["1"],
            "trace_count": ["-1"],
            "trace_mode": ["opentelemetry"],
        }
        call(gateway, "on")
        change(gateway, "other", trace_level="OFF")
        call(gateway, "other off", "other")
        call(gateway, "still on")
        assert change(gateway, "other")["trace_level"] == ["OFF"]
        assert change(gateway)["trace_level"] == ["TIMESTAMPS"]
        change(gateway, "other", trace_level=None)
        call(gateway, "other on", "other")
        change(gateway, trace_count="2")
        for number in range(4):
            call(gateway, f"counted {number}")
        assert change(gateway)["trace_count"] == ["0"]
        change(gateway, trace_count="-1", trace_level="OFF")
        call(gateway, "off", traceparent=TRACEPARENT)
        change(gateway, trace_level=None)
        last(collector, gateway)
    assert numbers(collector) == {"on", "still on", "other on", "counted 0", "counted 1", "last"}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"trace_level": "TENSORS"}, "trace_level: expected OFF or TIMESTAMPS, got 'TENSORS'"),
        ({"trace_rate": "-1"}, "trace_rate: expected a whole number, at least 0, got '-1'"),
        ({"trace_rate": "often"}, "trace_rate: expected a whole number, at least 0, got 'often'"),
        ({"trace_count": "-2"}, "trace_count: expected a whole number, at least -1, got '-2'"),
        ({"trace_file": "/tmp/x"}, "trace setting 'trace_file' cannot be changed: expected trace_level, "),  # noqa: S108
        ({"colour": "red"}, "trace setting 'colour' cannot be changed"),
    ],
)
def test_wrong_settings_are_refused(models, collector: Collector, settings: dict[str, str], told: str):
    """A setting that is not known, or a value that cannot be, is refused by name and changes nothing."""
    with serving(models, environment=collector.environment()) as gateway:
        before = change(gateway)
        code, message = refusal(lambda: change(gateway, **settings))
        assert code is Code.INVALID_ARGUMENT
        assert told in message
        assert refusal(lambda: change(gateway, "nobody", trace_rate="1"))[0] is Code.NOT_FOUND
        assert change(gateway) == before


def test_without_the_packages(models):
    """A bare installation says what to install, at the start for a flag and over RPC for TraceSetting."""
    without = "import sys; sys.modules['opentelemetry'] = None; from gateway.cli import main; sys.exit(main())"
    serve = ("serve", "--model-repository", str(models), "--port", "0", "--trace-rate", "1")
    done = subprocess.run([sys.executable, "-c", without, *serve], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--trace-rate: tracing is not installed: pip install 'tensorgate[otlp]'" in done.stderr


def test_nobody_takes_the_spans(models):
    """A dead collector costs the spans alone: calls are answered, the loss is counted and told in one line."""
    with socket.create_server(("127.0.0.1", 0)) as dead:
        address = dead.getsockname()[1]
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{address}",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_BSP_MAX_QUEUE_SIZE": "100",
    }
    with serving(models, "--metrics-port", "0", environment=environment) as gateway:
        where = gateway.server.wait_for_log(r"metrics on (\S+)").group(1)

        def dropped() -> float:
            with urllib.request.urlopen(where, timeout=60) as answer:  # noqa: S310
                return float(re.search(r"^tensorgate_spans_dropped_total (\S+)$", answer.read().decode(), re.M)[1])

        for _ in range(300):
            call(gateway)
        eventually(lambda: dropped() > 0)
        for _ in range(300):
            call(gateway)
        gateway.server.wait_for_log(r"spans were dropped: .*OTEL_EXPORTER_OTLP_ENDPOINT")
        gateway.server.signal()
        assert gateway.server.wait() == 0
        assert gateway.server.log.count("spans were dropped") == 1
