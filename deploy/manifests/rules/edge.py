"""Whether the way in from outside leads to where the gateway serves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from grpc_health.v1 import health_pb2

from deploy.manifests.findings import Finding
from deploy.manifests.render import Manifest
from deploy.manifests.workloads import by_kind, named, title
from vlmir.v1 import restorer_pb2

__all__ = ["routes"]

_SPOKEN = {
    service.full_name
    for file in (restorer_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
}
"""gRPC services that the gateway serves."""


def routes(objects: Sequence[Manifest]) -> Iterator[Finding]:
    """Routes begin at a listener and end at a port, name services that there are, and all of it is encrypted."""
    gateways, services = named(objects, "Gateway"), named(objects, "Service")
    for route in by_kind(objects, "GRPCRoute", "HTTPRoute"):
        spec = route["spec"]
        faults = [*_beginnings(spec, gateways), *_ends(route, services), *_methods(spec)]
        yield from (Finding("routes", title(route), what) for what in faults)
    certificates = [one["spec"] for one in by_kind(objects, "Certificate")]
    for gateway in gateways.values():
        for what in _unproven(gateway["spec"], certificates):
            yield Finding("routes", title(gateway), what)
    for policy in by_kind(objects, "BackendTLSPolicy"):
        spec = policy["spec"]
        targets = {target["name"] for target in spec["targetRefs"]}
        if not targets <= set(services):
            yield Finding("routes", title(policy), f"is for {sorted(targets)}, which is no Service")
        host = spec["validation"]["hostname"]
        if not any(host in one.get("dnsNames", ()) for one in certificates):
            yield Finding("routes", title(policy), f"expects {host}, which no certificate names")


def _beginnings(spec: Mapping[str, Any], gateways: Mapping[str, Manifest]) -> Iterator[str]:
    for parent in spec["parentRefs"]:
        listeners = gateways.get(parent["name"], {}).get("spec", {}).get("listeners", ())
        hosts = {one["name"]: one.get("hostname") for one in listeners}
        section = parent.get("sectionName")
        if section not in hosts:
            yield f"begins at {parent['name']}/{section}, which is no listener"
        elif set(spec["hostnames"]) != {hosts[section]}:
            yield f"is for {spec['hostnames']}, its listener for {hosts[section]}"


def _ends(route: Manifest, services: Mapping[str, Manifest]) -> Iterator[str]:
    for rule in route["spec"]["rules"]:
        for end in rule["backendRefs"]:
            ports = services.get(end["name"], {}).get("spec", {}).get("ports", ())
            found = [one for one in ports if one["port"] == end["port"]]
            if not found:
                yield f"ends at {end['name']}:{end['port']}, which is no port of a Service"
            elif route["kind"] == "GRPCRoute" and "appProtocol" not in found[0]:
                # Else a gateway takes it for HTTP/1.1.
                yield f"ends at {end['name']}, whose port does not say that it speaks HTTP/2"


def _methods(spec: Mapping[str, Any]) -> Iterator[str]:
    for rule in spec["rules"]:
        for match in rule["matches"]:
            service = match.get("method", {}).get("service") if "path" not in match else None
            if service and service not in _SPOKEN:
                yield f"is for {service}, which nobody serves"


def _unproven(spec: Mapping[str, Any], certificates: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for listener in spec["listeners"]:
        secrets = {one["name"] for one in listener.get("tls", {}).get("certificateRefs", ())}
        names = {
            name
            for one in certificates
            if one["secretName"] in secrets
            for name in one.get("dnsNames", ())
        }
        if listener.get("hostname") not in names:
            yield f"{listener['name']} has no certificate for {listener.get('hostname')}"
