"""Images and containers by podman, on machines with an engine of their own or none."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What podman would raise by itself, and may not everywhere.
_LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")

HARDENED = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges")
"""Nothing can be written to, not even /tmp, and there is nothing that root could do."""


def podman(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A command, run to its end."""
    command = ["podman", "--runtime", "runc", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert not check or done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done


def build(dockerfile: Path, context: Path, tag: str, **arguments: str) -> None:
    """Build an image, with this machine's network and its settings for pip."""
    given = [f"--build-arg={key}={value}" for key, value in arguments.items()]
    settings = [f"--volume={path}:{path}:ro" for path in ("/etc/pip.conf", "/etc/ssl/certs") if Path(path).exists()]
    options = ["--isolation=chroot", "--network=host", "--format=docker", *_LIMITS[:2], *given, *settings]
    podman("build", *options, "--file", dockerfile, "--tag", tag, context)


class Container:
    """A container under way."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, *command: str, check: bool = True) -> str:
        """What a command prints in there."""
        return podman("exec", self.name, *command, check=check).stdout

    def start(self, *command: str) -> subprocess.Popen[str]:
        """A command in there that goes on meanwhile."""
        whole = ["podman", "--runtime", "runc", "exec", self.name, *command]
        return subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    @property
    def log(self) -> str:
        """Everything written so far."""
        done = podman("logs", self.name)
        return done.stdout + done.stderr

    @property
    def state(self) -> dict[str, Any]:
        """Whether it runs, and how it ended."""
        (found,) = json.loads(podman("inspect", self.name).stdout)
        state: dict[str, Any] = found["State"]
        return state


@contextmanager
def running(image: str, *options: str, command: tuple[str, ...] = ()) -> Iterator[Container]:
    """A container without a network, gone in the end."""
    started = podman("run", "--detach", "--network=none", "--no-healthcheck", *_LIMITS, *options, image, *command)
    container = Container(started.stdout.strip())
    try:
        yield container
    finally:
        podman("rm", "--force", "--time=0", container.name)
