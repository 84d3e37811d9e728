"""The gateway against other servers, side by side on the machine at hand: `make bench-peers`."""
