"""Server settings: flags > environment (TENSORGATE_*) > TOML file > defaults; frozen and validated."""

from __future__ import annotations

import os
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Collection
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from gateway.tls import Tls

_PREFIX = "TENSORGATE_"


class InvalidSettings(Exception):
    """A setting is missing or wrong; the message names it, one line per fault."""


def is_url(repository: str) -> bool:
    """Whether a model repository is object storage, as s3://bucket/models, and no folder."""
    return re.match(r"[\w+.-]+:(//|:)", repository) is not None


def redacted(text: str) -> str:
    """A text without what is secret in the URLs in it: passwords, and signatures after a question mark."""
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]*", r"\1?***", re.sub(r"(?<=://)[^/@\s]+@", "***@", text))


def _repository(given: object) -> str:
    text = str(given)
    return text if is_url(text) else str(_folder(Path(text)))


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise ValueError(f"no such directory: {path}" if not path.exists() else f"not a directory: {path}")
    if not os.access(path, os.R_OK | os.X_OK):
        raise ValueError(f"not readable: {path}")
    return path.resolve()


def tracing_installed() -> bool:
    """Whether what exports spans is there."""
    return find_spec("opentelemetry") is not None and find_spec("opentelemetry.sdk") is not None


def _split(names: Any) -> Any:
    """Names in one string, as a flag or the environment has them."""
    return [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else names


def _unless_off(port: Any) -> Any:
    return None if port == "off" else port


class Settings(BaseSettings):
    """Everything `tensorgate serve` can be told."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        env_ignore_empty=True,  # a compose file's ${PORT:-} is no port
        protected_namespaces=(),
    )

    model_repository: Annotated[str, BeforeValidator(_repository)] = Field(
        description="Folder of models, in Triton's layout: NAME/VERSION/model.onnx, NAME/config.pbtxt; or object "
        "storage: s3://BUCKET/FOLDER, gs://, az://, a .zip by https://"
    )
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every interface")
    port: int = Field(8001, ge=0, le=65535, description="Port to listen on; 0 picks a free one")
    metrics_port: Annotated[int | None, BeforeValidator(_unless_off)] = Field(
        8002, ge=0, le=65535, description="Port of /metrics, over HTTP; 0 picks a free one, 'off' does without"
    )
    transport: Literal["auto", "grpcio", "native"] = Field(
        "auto",
        description="native: HTTP/2 of our own on the event loop, the faster one; grpcio: gRPC's own; auto: native",
    )
    engine: Literal["threads", "ray"] = Field(
        "threads", description="Where instances run. threads: in this process; ray: as actors on a Ray cluster's nodes"
    )
    ray_address: str = Field(
        "auto",
        description="With --engine ray: HOST:PORT of the cluster's head; auto: RAY_ADDRESS, or the cluster that this "
        "machine is a node of; local: a cluster of this machine alone, which ends with the server",
    )
    tls_cert: Path | None = Field(
        None, description="With --tls-key: encrypt, by this certificate (PEM); a changed file is read again"
    )
    tls_key: Path | None = Field(None, description="Its private key (PEM)")
    tls_client_ca: Path | None = Field(
        None, description="Let only clients in whose certificates one of these authorities has signed (PEM)"
    )
    model_control: Literal["none", "poll", "explicit"] = Field(
        "none", description="none: load all at start; poll: follow the folder; explicit: load and unload by RPC"
    )
    load_model: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
        (), description="With --model-control explicit: models to load at start, comma-separated; '*' for all"
    )
    poll_interval_s: float = Field(
        15.0, gt=0, allow_inf_nan=False, description="With --model-control poll: seconds between looks"
    )
    model_cache: Path | None = Field(
        None,
        description="Folder to keep models of object storage in, also from start to start; by default 'tensorgate' in "
        "$XDG_CACHE_HOME or ~/.cache",
    )
    default_max_batch_size: int = Field(
        32, ge=1, description="Rows per request for a batching model whose file and config.pbtxt name no limit"
    )
    cache_size_mb: int = Field(
        256, ge=0, description="Most memory for cached responses, in MiB; models opt in with response_cache"
    )
    max_message_mb: int = Field(64, ge=1, le=2047, description="Largest request or response, in MiB")
    stream_window: int = Field(
        256, ge=1, description="Requests of one ModelStreamInfer stream under way at once; beyond them, it is not read"
    )
    max_connection_age_s: float = Field(
        inf,
        gt=0,
        description="Seconds after which a connection takes no further calls, so that clients who balance by "
        "themselves find servers that came later",
    )
    shutdown_grace_s: float = Field(
        30.0, ge=0, allow_inf_nan=False, description="Seconds that requests in flight get to finish on SIGTERM"
    )
    trace_rate: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the calls that are traced; 0: those whose caller traces them. By default "
        "OpenTelemetry's environment variables decide",
    )
    trace_slow_ms: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="Where calls are traced: keep all that take longer, sampled or not"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe line to log")
    log_format: Literal["auto", "human", "json"] = Field(
        "auto", description="human: lines for people; json: an object a line; auto: human on a terminal, else json"
    )
    allow_shared_memory: bool = Field(
        default=False,
        description="Let tensors lie in this machine's shared memory: callers can then read and write all of it that "
        "the server can",
    )
    access_log: bool = Field(default=False, description="Log a line for each call, whatever --log-level says")

    @property
    def native(self) -> bool:
        """Whether the transport of our own is to be used."""
        return self.transport != "grpcio"

    @property
    def tls(self) -> Tls | None:
        """What encrypts connections, if they are to be."""
        return Tls(self.tls_cert, self.tls_key, self.tls_client_ca) if self.tls_cert and self.tls_key else None

    @model_validator(mode="after")
    def _together(self) -> Self:
        self._check_tls()
        if self.engine == "ray" and find_spec("ray") is None:
            raise ValueError("--engine ray: not installed: pip install 'tensorgate[ray]'")
        if "ray_address" in self.model_fields_set and self.engine != "ray":
            raise ValueError("--ray-address needs --engine ray: without it, instances run in this process")
        if self.trace_rate is not None and not tracing_installed():
            raise ValueError("--trace-rate: tracing is not installed: pip install 'tensorgate[otlp]'")
        if self.load_model and self.model_control != "explicit":
            raise ValueError(f"load_model needs --model-control explicit: '{self.model_control}' loads every model")
        return self

    def _check_tls(self) -> None:
        if bool(self.tls_cert) != bool(self.tls_key) or (self.tls_client_ca and not self.tls_cert):
            raise ValueError("TLS needs --tls-cert and --tls-key; --tls-client-ca goes with them")
        if self.tls:
            self.tls.check()


def add_arguments(parser: ArgumentParser, only: Collection[str] = ()) -> Callable[[Namespace], Settings]:
    """Declare settings as flags of `parser`, all or only some; what comes back turns parsed arguments into settings."""

    def add(parser: ArgumentParser, *names: str, **options: Any) -> None:
        if not only or names[0].removeprefix("--").replace("-", "_") in only:
            _add_argument(parser, *names, **options)

    parser.add_argument("--config", metavar="FILE", help="TOML file of settings, by their names with underscores")
    flags: CliSettingsSource[Settings] = CliSettingsSource(Settings, root_parser=parser, add_argument_method=add)

    def parse(arguments: Namespace) -> Settings:
        given = {name: value for name, value in vars(arguments).items() if name in Settings.model_fields}
        file = arguments.config or os.environ.get(f"{_PREFIX}CONFIG")
        return load(flags(parsed_args=given), file)

    return parse


def _add_argument(parser: ArgumentParser, *names: str, **options: Any) -> None:
    """Add a flag, its value named as users would rather than by Python's type."""
    if "metavar" in options:  # switches have none
        options["metavar"] = _METAVARS.get(names[0]) or _METAVARS.get(options["metavar"], options["metavar"])
    options["help"] = (
        options["help"].replace("(default: ())", "(default: none)").replace("(default: None)", "(default: none)")
    )
    parser.add_argument(*names, **options)


_METAVARS = {
    "--model-repository": "DIR|URL",
    "Path": "DIR",
    "{Path,None}": "PATH",
    "str": "TEXT",
    "int": "N",
    "{int,None}": "N",
    "float": "N",
    "{float,None}": "N",
    "tuple[str,...]": "NAMES",
}


def load(flags: CliSettingsSource[Settings], file: str | None) -> Settings:
    """Settings from all sources.

    Raises:
        InvalidSettings: a value is missing or wrong, or the file cannot be read.
    """
    if file and not Path(file).is_file():
        raise InvalidSettings(f"--config: no such file: {file}")

    class Sourced(Settings):
        @classmethod
        def settings_customise_sources(  # the library's signature
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            toml = (TomlConfigSettingsSource(settings_cls, Path(file)),) if file else ()
            return flags, env_settings, *toml

    try:
        return Sourced()
    except ValidationError as error:
        given = {name.lower() for name in flags.env_vars}
        raise InvalidSettings("\n".join(_line(fault, given, file) for fault in error.errors())) from error
    except (ValueError, OSError) as error:  # TOML that does not parse, or cannot be read
        raise InvalidSettings(f"{file}: {error}") from error


def _line(fault: Any, flags: Collection[str], file: str | None) -> str:
    """A fault in a line that starts with where the value was given."""
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    message = message.partition(", unable to ")[0]
    if not fault["loc"]:  # several settings together
        return str(message)
    name = str(fault["loc"][0])
    flag, variable = f"--{name.replace('_', '-')}", f"{_PREFIX}{name.upper()}"
    if fault["type"] == "missing":
        return f"{flag} is required (or {variable}, or {name} in the --config file)"
    if fault["type"] == "extra_forbidden":
        return f"{file}: unknown setting '{name}': expected one of {', '.join(Settings.model_fields)}"
    place = flag if name in flags else variable if os.environ.get(variable) else f"{file}: {name}"
    wrong = message if fault["type"] == "value_error" else f"expected {message}, got '{fault['input']}'"
    return f"{place}: {wrong}"
