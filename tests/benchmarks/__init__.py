"""What the gateway costs, measured on the machine at hand: `make bench`."""
