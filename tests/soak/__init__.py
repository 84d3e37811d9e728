"""Random traffic against a running gateway for minutes: nothing lost, nothing wrong, nothing left behind."""
