"""Server settings: flags > environment (TENSORGATE_*) > TOML file > defaults; frozen and validated."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

_PREFIX = "TENSORGATE_"


class InvalidSettings(Exception):
    """A setting is missing or wrong; the message names it, one line per fault."""


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise ValueError(f"no such directory: {path}" if not path.exists() else f"not a directory: {path}")
    return path.resolve()


class Settings(BaseSettings):
    """Everything `tensorgate serve` can be told."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        protected_namespaces=(),
    )

    model_repository: Annotated[Path, AfterValidator(_folder)] = Field(
        description="Folder of models, in Triton's layout: NAME/VERSION/model.onnx, NAME/config.pbtxt"
    )
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every interface")
    port: int = Field(8001, ge=0, le=65535, description="Port to listen on; 0 picks a free one")
    model_control: Literal["none", "poll", "explicit"] = Field(
        "none", description="none: load all at start; poll: follow the folder; explicit: load and unload by RPC"
    )
    load_model: tuple[str, ...] = Field(
        (), description="With --model-control explicit: model to load at start; repeatable, '*' for all"
    )
    poll_interval_s: float = Field(15.0, gt=0, description="With --model-control poll: seconds between looks")
    default_max_batch_size: int = Field(
        32, ge=1, description="Rows per request for a batching model that names no limit of its own"
    )
    max_message_mb: int = Field(64, ge=1, le=2047, description="Largest request or response, in MiB")
    shutdown_grace_s: float = Field(30.0, ge=0, description="Seconds that requests in flight get to finish on SIGTERM")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe line to log")


def add_arguments(parser: ArgumentParser) -> Callable[[Namespace], Settings]:
    """Declare every setting as a flag of `parser`; what comes back turns parsed arguments into settings."""
    parser.add_argument("--config", metavar="FILE", help="TOML file of settings, by their names with underscores")
    flags: CliSettingsSource[Settings] = CliSettingsSource(Settings, root_parser=parser)

    def parse(arguments: Namespace) -> Settings:
        given = {name: value for name, value in vars(arguments).items() if name not in ("command", "config")}
        file = arguments.config or os.environ.get(f"{_PREFIX}CONFIG")
        return load(flags(parsed_args=given), file)

    return parse


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
        raise InvalidSettings("\n".join(_line(fault) for fault in error.errors())) from error
    except (SettingsError, ValueError) as error:  # a TOML or JSON value that does not parse
        raise InvalidSettings(f"{file or 'settings'}: {error}") from error


def _line(fault: Any) -> str:
    name = str(fault["loc"][0]) if fault["loc"] else "settings"
    flag = f"--{name.replace('_', '-')}"
    if fault["type"] == "missing":
        return f"{flag} is required (or {_PREFIX}{name.upper()}, or {name} in the --config file)"
    if fault["type"] == "extra_forbidden":
        return f"unknown setting '{name}': expected one of {', '.join(Settings.model_fields)}"
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return (
        f"{flag}: {message}"
        if fault["type"] == "value_error"
        else f"{flag}: expected {message}, got '{fault['input']}'"
    )
