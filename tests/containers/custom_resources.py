"""Run among the tools: reads objects, a JSON list, and fails on what their kinds' published models do not know."""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import Any

from cloudcoil.models import keda, prometheus_operator
from pydantic import BaseModel

PYDANTIC: dict[str, type[BaseModel]] = {
    "ScaledObject": keda.v1alpha1.ScaledObject,
    "PrometheusRule": prometheus_operator.v1.PrometheusRule,
    "ServiceMonitor": prometheus_operator.v1.ServiceMonitor,
}
OPENAPI = {
    "ClusterServingRuntime": "V1alpha1ClusterServingRuntime",
    "InferenceService": "V1beta1InferenceService",
}


def check(found: dict[str, Any]) -> None:
    """Fail on unknown fields, missing ones, and values of another type."""
    kind = found["kind"]
    if kind in PYDANTIC:
        known = PYDANTIC[kind].model_validate(found).model_dump(mode="json", by_alias=True, exclude_unset=True)
        assert known == found, f"{kind}: expected\n{known}\ngot\n{found}"
    else:
        import kserve  # noqa: PLC0415  # ten seconds

        _walk(kind, found, OPENAPI[kind], kserve)


def _walk(path: str, value: Any, kind: str, models: ModuleType) -> None:
    """A value and what a model says of it: list[X], a model of KServe, or another type, as those of Kubernetes."""
    if kind.startswith("list["):
        for number, entry in enumerate(value):
            _walk(f"{path}[{number}]", entry, kind[5:-1], models)
    elif model := getattr(models, kind, None):
        names = {theirs: ours for ours, theirs in model.attribute_map.items()}
        assert set(value) <= set(names), f"{path}: unknown {sorted(set(value) - set(names))}"
        for key, entry in value.items():
            _walk(f"{path}.{key}", entry, model.openapi_types[names[key]], models)
    elif kind in PLAIN:
        assert isinstance(value, PLAIN[kind]), f"{path}: expected {kind}, got {value!r}"


PLAIN = {"str": str, "int": int, "bool": bool}


for each in json.load(sys.stdin):
    check(each)
