"""compose.yaml and the Dockerfile, by the tools that know their languages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from support.tools import Tool

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_compose_is_valid(tool: Callable[[str], Tool]) -> None:
    """The file follows the specification of compose."""
    check = tool("check-jsonschema")("--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")
    assert check.returncode == 0, check.stdout + check.stderr


def test_nothing_to_find_fault_with_in_the_dockerfile(tool: Callable[[str], Tool]) -> None:
    """Hadolint has no complaint."""
    check = tool("hadolint")(DEPLOY / "docker" / "Dockerfile")
    assert check.returncode == 0, check.stdout + check.stderr
