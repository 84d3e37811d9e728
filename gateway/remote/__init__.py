"""Backend `remote`: models whose instances are other servers of the Open Inference Protocol."""
