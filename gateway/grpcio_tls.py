"""TLS for gRPC's core."""

from __future__ import annotations

from typing import Any

import grpc

from gateway.tls import Following, Tls


def credentials(tls: Tls) -> Any:
    """The core's own; it asks at each connection, on a thread of its own, whether there are newer files.

    Raises:
        OSError: a file cannot be read.
    """
    following = Following(tls)

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        return _configuration(tls) if following.renewed() else None

    asked: Any = renewed  # may give None, of which the stubs know nothing
    needed = tls.client_ca is not None
    made: Any = grpc.dynamic_ssl_server_credentials(_configuration(tls), asked, require_client_authentication=needed)
    return made._credentials


def _configuration(tls: Tls) -> grpc.ServerCertificateConfiguration:
    authorities = tls.client_ca.read_bytes() if tls.client_ca else None
    return grpc.ssl_server_certificate_configuration([(tls.key.read_bytes(), tls.cert.read_bytes())], authorities)
