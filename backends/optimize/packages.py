"""What has to be installed for a technique."""

from __future__ import annotations

import importlib.util


def missing(*modules: str, extra: str = "optimize") -> str:
    """A sentence that names the modules which are not there, with the command that installs them; "" if all are."""
    lacking = [module for module in modules if importlib.util.find_spec(module) is None]
    return f"{', '.join(lacking)} not installed: pip install 'tensorgate[{extra}]'" if lacking else ""
