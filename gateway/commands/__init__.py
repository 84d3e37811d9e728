"""The sub-commands that call a server: `predict`, `models` and `bench`. They know the client, nothing of the server."""
