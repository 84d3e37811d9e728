"""The files that encrypt connections. Changed ones are read again, so that renewed certificates need no restart."""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path

_log = logging.getLogger(__name__)


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

    def context(self) -> ssl.SSLContext:
        """What Python's servers encrypt HTTP/2 with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # as HTTP/2 demands
        context.load_cert_chain(self.cert, self.key, password=_refuse)
        context.set_alpn_protocols(["h2"])
        if self.client_ca:
            context.load_verify_locations(self.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
            # A session that is taken up again would outlive its authority in a renewed file; of 1.2's there is no end.
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.num_tickets = 0
        return context


class Following:
    """Whether the files have changed."""

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._known = self._state()
        self._fault = ""

    def renewed(self) -> bool:
        """Whether there are new ones since it was last asked, that can be used. One thread at a time may ask."""
        try:
            if (state := self._state()) == self._known:
                return False
            self._tls.check()
        except (OSError, ValueError) as error:  # half written, say: the next connection looks again
            if str(error) != self._fault:  # told once, not by every connection
                self._fault = str(error)
                _log.warning("TLS goes on with the former certificate: %s", error)
            return False
        self._known, self._fault = state, ""
        _log.info("TLS goes on with the new %s", self._tls.cert)
        return True

    def _state(self) -> list[tuple[int, int]]:
        files = [path.stat() for path in self._tls.files]
        return [(file.st_mtime_ns, file.st_ino) for file in files]


def renewing(tls: Tls) -> ssl.SSLContext:
    """A context that each new connection begins with, and leaves for one of newer files where there are any."""
    following = Following(tls)
    first = latest = tls.context()

    def renew(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        nonlocal latest
        if following.renewed():
            latest = tls.context()
        connection.context = latest

    first.sni_callback = renew  # called by every handshake, whether or not it names a server
    return first


def _refuse() -> str:
    raise ValueError("the private key has a password: give one without, readable by the server alone")
