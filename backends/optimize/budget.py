"""A budget in words, as "accuracy>=0.97, p99<5ms, size<1MB": what the winner has to keep to."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

_CONDITION = re.compile(r"\s*([a-z0-9_]+)\s*(<=|>=|<|>)\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z%/]*)\s*")

_SHARE = {"": 1.0, "%": 0.01}
_MS = {"ms": 1.0, "us": 0.001, "s": 1000.0}
_BYTES = {"B": 1.0} | {
    f"{prefix}{unit}": float(base**power)
    for unit, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate("KMG", 1)
}
_PER_S = {"": 1.0, "/s": 1.0, "rows/s": 1.0}


class InvalidBudget(Exception):
    """The budget is not understood; the message says what is."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """What a condition can be about.

    Attributes:
        units: by name, what a number of them is in the figure's own.
        more_is_better: so that only a lower bound makes sense, else only an upper one.
        example: of a condition.
    """

    units: Mapping[str, float]
    more_is_better: bool
    example: str


QUANTITIES = {
    "accuracy": Quantity(_SHARE, more_is_better=True, example="accuracy>=0.97"),
    "drop": Quantity(_SHARE, more_is_better=False, example="drop<=1%"),
    "p50": Quantity(_MS, more_is_better=False, example="p50<2ms"),
    "p95": Quantity(_MS, more_is_better=False, example="p95<4ms"),
    "p99": Quantity(_MS, more_is_better=False, example="p99<5ms"),
    "size": Quantity(_BYTES, more_is_better=False, example="size<1MB"),
    "memory": Quantity(_BYTES, more_is_better=False, example="memory<500MB"),
    "throughput": Quantity(_PER_S, more_is_better=True, example="throughput>=1000"),
}
"""By the names that a budget has for them. Figures are a score, milliseconds, bytes and rows a second."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A bound on one figure.

    Attributes:
        text: as it was written.
        strict: whether the bound itself is too much.
        limit: in the figure's own unit.
    """

    text: str
    name: str
    strict: bool
    limit: float

    def holds(self, value: float) -> bool:
        """Whether a figure keeps to it."""
        if math.isclose(value, self.limit, rel_tol=1e-9):  # 0.98 - 0.97 is more than 0.01
            return not self.strict
        return (value > self.limit) == QUANTITIES[self.name].more_is_better

    def excess(self, value: float) -> float:
        """By which share of the limit a figure misses it; 0 if it holds."""
        return 0.0 if self.holds(value) else abs(value - self.limit) / max(abs(self.limit), 1e-9)


Budget = tuple[Condition, ...]


def parse(text: str) -> Budget:
    """The conditions of a budget, one or more, separated by commas.

    Raises:
        InvalidBudget: a part is no condition, or one that nothing could sensibly keep to.
    """
    budget = tuple(_condition(part) for part in text.split(","))
    names = [condition.name for condition in budget]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InvalidBudget(f"'{twice}' is limited twice in '{text}'")
    return budget


def _condition(text: str) -> Condition:
    match = _CONDITION.fullmatch(text)
    if not match or match[1] not in QUANTITIES:
        examples = ", ".join(quantity.example for quantity in QUANTITIES.values())
        raise InvalidBudget(f"'{text.strip()}' is not understood; conditions are such as {examples}")
    name, operator, number, unit = match.groups()
    quantity = QUANTITIES[name]
    if (operator[0] == ">") != quantity.more_is_better:
        side = "more" if quantity.more_is_better else "less"
        raise InvalidBudget(f"'{text.strip()}': {side} {name} is better, expected as in {quantity.example}")
    if unit not in quantity.units:
        units = ", ".join(known or "no unit" for known in quantity.units)
        raise InvalidBudget(f"'{text.strip()}': unit '{unit}', expected {units}: as in {quantity.example}")
    return Condition(text.strip(), name, operator in "<>", float(number) * quantity.units[unit])
