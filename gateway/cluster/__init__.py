"""Models on the nodes of a Ray cluster: `--engine ray`. Only what that asks for imports any of it."""
