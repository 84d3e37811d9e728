"""The inference gateway: an application, started by the `tensorgate` command."""
