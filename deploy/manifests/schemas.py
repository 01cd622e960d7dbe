"""Small schemas of the custom resources that we use: their fields as the projects document them, and no others.

They stand in where a CustomResourceDefinition's own schema is not at hand; only KubeRay's can be given (`validate`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

__all__ = ["SCHEMAS", "Schema"]

Schema: TypeAlias = dict[str, Any]

_TEXT: Schema = {"type": "string", "minLength": 1}
_NUMBER: Schema = {"type": "integer", "minimum": 0}
_PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
_FLAG: Schema = {"type": "boolean"}
_DURATION: Schema = {"type": "string", "pattern": r"^(\d+(ms|h|m|s))+$"}
_HOST: Schema = {
    "type": "string",
    "pattern": r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$",
}
_MAP: Schema = {"type": "object", "additionalProperties": {"type": "string"}}


def _one_of(*values: str) -> Schema:
    return {"enum": list(values)}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


def _fields(*required: str, **properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_ANY: Schema = {"type": "object"}
_REFERENCE = _fields("name", name=_TEXT, kind=_one_of("Issuer", "ClusterIssuer"), group=_TEXT)
_LOCAL = _fields("name", "kind", name=_TEXT, kind=_TEXT, group={"type": "string"})
_PARENTS = _list(_fields("name", name=_TEXT, sectionName=_TEXT))
_BACKENDS = _list(_fields("name", "port", name=_TEXT, port=_PORT, weight=_NUMBER))
_SELECTOR = _fields(matchLabels=_MAP, matchExpressions=_list(_ANY))

_LISTENER = _fields(
    *("name", "port", "protocol"),
    name=_TEXT,
    port=_PORT,
    hostname=_HOST,
    protocol=_one_of("HTTP", "HTTPS", "TLS", "TCP"),
    tls=_fields(mode=_one_of("Terminate", "Passthrough"), certificateRefs=_list(_LOCAL)),
    allowedRoutes=_fields(namespaces=_fields(**{"from": _one_of("All", "Same", "Selector")})),
)
_GRPC_MATCH = _fields(
    method=_fields(type=_one_of("Exact", "RegularExpression"), service=_TEXT, method=_TEXT)
)
_HTTP_MATCH = _fields(
    path=_fields(
        "type",
        "value",
        type=_one_of("Exact", "PathPrefix"),
        value={"type": "string", "pattern": "^/"},
    ),
    method=_one_of("GET", "HEAD", "POST", "PUT", "DELETE"),
)
_CERTIFICATE = _fields(
    *("secretName", "issuerRef"),
    isCA=_FLAG,
    commonName={"type": "string", "maxLength": 64},
    dnsNames=_list(_HOST),
    secretName=_TEXT,
    duration=_DURATION,
    renewBefore=_DURATION,
    usages=_list(_one_of("server auth", "client auth", "digital signature", "key encipherment")),
    privateKey=_fields(
        algorithm=_one_of("RSA", "ECDSA", "Ed25519"),
        size=_NUMBER,
        encoding=_one_of("PKCS1", "PKCS8"),
        rotationPolicy=_one_of("Always", "Never"),
    ),
    issuerRef=_REFERENCE,
)
_RELABELLING = _fields(
    action=_one_of("replace", "keep", "drop", "labeldrop", "labelkeep", "labelmap"),
    sourceLabels=_list(_TEXT),
    regex=_TEXT,
    targetLabel=_TEXT,
    replacement=_TEXT,
)
_SCRAPE = _list(
    _fields(
        "port",
        port=_TEXT,
        path=_TEXT,
        interval=_DURATION,
        metricRelabelings=_list(_RELABELLING),
    )
)

_RAY_GROUP: Mapping[str, Schema] = {"rayStartParams": _MAP, "template": _ANY}
_RAY_CLUSTER = _fields(
    *("rayVersion", "headGroupSpec"),
    rayVersion=_TEXT,
    authOptions=_fields("mode", mode=_one_of("disabled", "token"), secretName=_TEXT),
    headGroupSpec=_fields("template", "rayStartParams", **_RAY_GROUP),
    workerGroupSpecs=_list(
        _fields(
            *("groupName", "template", "minReplicas", "maxReplicas"),
            groupName=_TEXT,
            replicas=_NUMBER,
            minReplicas=_NUMBER,
            maxReplicas=_NUMBER,
            **_RAY_GROUP,
        )
    ),
)
_RAY_JOB = _fields(
    *("entrypoint", "rayClusterSpec"),
    entrypoint=_TEXT,
    submissionMode=_one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    shutdownAfterJobFinishes=_FLAG,
    ttlSecondsAfterFinished=_NUMBER,
    activeDeadlineSeconds=_NUMBER,
    backoffLimit=_NUMBER,
    suspend=_FLAG,
    rayClusterSpec=_RAY_CLUSTER,
)
_RAY_SERVICE = _fields(
    *("serveConfigV2", "rayClusterConfig"),
    serveConfigV2=_TEXT,
    serviceUnhealthySecondThreshold=_NUMBER,
    rayClusterDeletionDelaySeconds=_NUMBER,
    upgradeStrategy=_fields("type", type=_one_of("NewCluster", "None")),
    excludeHeadPodFromServeSvc=_FLAG,
    rayClusterConfig=_RAY_CLUSTER,
)

SCHEMAS: Mapping[tuple[str, str], Schema] = {
    ("cert-manager.io/v1", "Issuer"): {
        "oneOf": [
            _fields("selfSigned", selfSigned=_fields()),
            _fields("ca", ca=_fields("secretName", secretName=_TEXT)),
        ]
    },
    ("cert-manager.io/v1", "Certificate"): _CERTIFICATE,
    ("gateway.networking.k8s.io/v1", "Gateway"): _fields(
        "gatewayClassName", "listeners", gatewayClassName=_TEXT, listeners=_list(_LISTENER)
    ),
    ("gateway.networking.k8s.io/v1", "GRPCRoute"): _fields(
        *("parentRefs", "rules"),
        parentRefs=_PARENTS,
        hostnames=_list(_HOST),
        rules=_list(_fields(matches=_list(_GRPC_MATCH), backendRefs=_BACKENDS)),
    ),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): _fields(
        *("parentRefs", "rules"),
        parentRefs=_PARENTS,
        hostnames=_list(_HOST),
        rules=_list(_fields(matches=_list(_HTTP_MATCH), backendRefs=_BACKENDS)),
    ),
    ("gateway.networking.k8s.io/v1", "BackendTLSPolicy"): _fields(
        *("targetRefs", "validation"),
        targetRefs=_list(_LOCAL),
        validation=_fields("hostname", hostname=_HOST, caCertificateRefs=_list(_LOCAL)),
    ),
    ("monitoring.coreos.com/v1", "PodMonitor"): _fields(
        *("selector", "podMetricsEndpoints"), selector=_SELECTOR, podMetricsEndpoints=_SCRAPE
    ),
    ("ray.io/v1", "RayService"): _RAY_SERVICE,
    ("ray.io/v1", "RayJob"): _RAY_JOB,
}
"""(apiVersion, kind) → schema of ``spec``."""
