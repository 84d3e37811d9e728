"""TLS for gRPC's core. Changed files are read again, so that renewed certificates need no restart."""

from __future__ import annotations

import logging
from typing import Any

import grpc

from gateway.tls import Tls

_log = logging.getLogger(__name__)


def credentials(tls: Tls) -> Any:
    """The core's own; it asks at each connection whether there are newer files.

    Raises:
        OSError: a file cannot be read.
    """
    following = _Following(tls)
    needed = tls.client_ca is not None
    renewed: Any = following.renewed  # may give None, of which the stubs know nothing
    made: Any = grpc.dynamic_ssl_server_credentials(
        following.configuration, renewed, require_client_authentication=needed
    )
    return made._credentials


class _Following:
    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._known = self._state()
        self._fault = ""
        self.configuration = self._read()

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """The new configuration, None if the former still holds. Called by a thread of gRPC's."""
        try:
            if (state := self._state()) == self._known:
                return None
            self._tls.check()
            configuration = self._read()
        except (OSError, ValueError) as error:  # half written, say: the next connection looks again
            if str(error) != self._fault:  # told once, not by every connection
                self._fault = str(error)
                _log.warning("TLS goes on with the former certificate: %s", error)
            return None
        self._known, self._fault = state, ""
        _log.info("TLS goes on with the new %s", self._tls.cert)
        return configuration

    def _state(self) -> list[tuple[int, int]]:
        files = [path.stat() for path in self._tls.files]
        return [(file.st_mtime_ns, file.st_ino) for file in files]

    def _read(self) -> grpc.ServerCertificateConfiguration:
        tls = self._tls
        authorities = tls.client_ca.read_bytes() if tls.client_ca else None
        return grpc.ssl_server_certificate_configuration([(tls.key.read_bytes(), tls.cert.read_bytes())], authorities)
