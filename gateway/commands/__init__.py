"""The sub-commands that call a server: `models`, `bench` and `predict`. They know the client and nothing of the server."""
