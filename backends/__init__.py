"""Adapters between the gateway and the runtimes that execute models."""

import os

# From 1.32 on ONNX Runtime reports its use to its makers unless it is told not to; whoever wants that can say so.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
