"""The inference gateway: an application, started by the `tensorgate` command."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("tensorgate")
except PackageNotFoundError:  # a checkout that is not installed, `python -m gateway`
    VERSION = "0+checkout"
