"""Ask a gRPC server whether it is well: ``python -m services.common.probe HOST:PORT``; the exit status says it.

For containers, whose images hold nothing else that speaks gRPC.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

__all__ = ["is_serving", "main"]

PATIENCE_S = 5.0
"""Seconds that an answer may take."""


def is_serving(
    address: str,
    service: str = "",
    *,
    ca: bytes | None = None,
    name: str | None = None,
    pair: tuple[bytes, bytes] | None = None,
    timeout_s: float = PATIENCE_S,
) -> bool:
    """Whether a gRPC server reports a service as SERVING.

    Args:
        address: The server's, host:port.
        service: Full name of the service; empty: the whole server.
        ca: Certificate of the authority in PEM that the server is proven by; None: it is spoken to without TLS.
        name: Name in the server's certificate where it is not the address's.
        pair: Key and certificate in PEM to be shown to a server that asks for them.
        timeout_s: Seconds that the answer may take.
    """
    request = health_pb2.HealthCheckRequest(service=service)
    with _channel(address, ca, name, pair) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s)
        except grpc.RpcError:
            return False
    healthy: bool = reply.status == health_pb2.HealthCheckResponse.SERVING
    return healthy


def _channel(
    address: str, ca: bytes | None, name: str | None, pair: tuple[bytes, bytes] | None
) -> grpc.Channel:
    if ca is None:
        return grpc.insecure_channel(address)
    options = [("grpc.ssl_target_name_override", name)] if name else []
    return grpc.secure_channel(
        address, grpc.ssl_channel_credentials(ca, *(pair or (None, None))), options
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line.

    Returns:
        The exit status: 0 if it is SERVING, 1 if not, 2 where the certificate cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="python -m services.common.probe",
        description="Ask a gRPC server whether it is SERVING. Status 1: it is not, or does not answer.",
    )
    parser.add_argument("address", help="host:port")
    parser.add_argument("--service", default="", help="full name (default: the whole server)")
    parser.add_argument("--ca", type=Path, help="certificate of its authority in PEM, for TLS")
    parser.add_argument("--name", help="name in its certificate, if not that of the address")
    parser.add_argument("--cert", type=Path, help="certificate in PEM to be shown; with --key")
    parser.add_argument("--key", type=Path, help="its key in PEM")
    parser.add_argument("--timeout", type=float, default=PATIENCE_S, help="seconds (default: 5)")
    asked = parser.parse_args(arguments)
    if (asked.cert is None) != (asked.key is None):
        parser.error("give --cert and --key together, or neither")
    try:
        ca = asked.ca and asked.ca.read_bytes()
        pair = (asked.key.read_bytes(), asked.cert.read_bytes()) if asked.cert else None
    except OSError as error:
        print(f"error: {error.filename} cannot be read ({error.strerror})", file=sys.stderr)
        return 2
    well = is_serving(
        asked.address,
        asked.service,
        ca=ca,
        name=asked.name,
        pair=pair,
        timeout_s=asked.timeout,
    )
    if not well:
        print(f"{asked.address} is not serving {asked.service}".rstrip(), file=sys.stderr)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
