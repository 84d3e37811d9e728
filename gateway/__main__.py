"""The program: `tensorgate`, or `python -m gateway`."""

import os
import signal


def main() -> None:
    """Run the command. Its imports take a moment, in which Ctrl-C is to end it as quietly as later on."""
    try:
        from gateway.cli import main as command  # noqa: PLC0415

        command()
    except KeyboardInterrupt:
        os._exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
