"""Adapters between the gateway and the runtimes that execute models."""
