"""The files that encrypt connections."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Tls:
    """A server's certificate; all files are PEM.

    Attributes:
        cert: the server's certificate, and those that lead from it to its authority.
        key: its private key, without a password.
        client_ca: authorities of which one must have signed every client's certificate; None: clients need none.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    @property
    def files(self) -> list[Path]:
        """All that there are."""
        return [path for path in (self.cert, self.key, self.client_ca) if path]

    def check(self) -> None:
        """See that the files can be used.

        Raises:
            ValueError: one cannot be read, or is not what it should be, or key and certificate do not fit.
        """
        for path in self.files:
            try:
                path.read_bytes()
            except OSError as error:
                raise ValueError(f"{path}: {error.strerror}") from error
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.cert, self.key, password=_refuse)
        except ssl.SSLError as error:
            raise ValueError(
                f"{self.cert} and {self.key} are no certificate and its key, in PEM: {error.reason}"
            ) from error
        if self.client_ca:
            try:
                context.load_verify_locations(self.client_ca)
            except ssl.SSLError as error:
                raise ValueError(f"{self.client_ca} holds no certificate, in PEM: {error.reason}") from error


def _refuse() -> str:
    raise ValueError("the private key has a password: give one without, readable by the server alone")
