"""`python -m gateway` is `tensorgate`."""

from gateway.cli import main

main()
