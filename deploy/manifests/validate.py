"""Every object against the schema of its kind; a kind without one is an error, and so is a field that the schema lacks.

Kubernetes' own kinds: the schemas of the package kubernetes-validate. KubeRay's: that of its CustomResourceDefinition,
where the file is given. Other custom resources, and KubeRay's without that file: small schemas of the fields that are
used here (`deploy.manifests.schemas`), and the pods in them as Kubernetes' own.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import yaml  # type: ignore[import-untyped]
from referencing import Registry, Resource

from deploy.manifests.findings import Finding
from deploy.manifests.render import Manifest
from deploy.manifests.schemas import SCHEMAS, Schema
from deploy.manifests.workloads import by_kind, title, workloads

__all__ = ["KUBERNETES", "RULE", "validate"]

KUBERNETES = "1.32"
"""The oldest Kubernetes that the manifests are for; newer ones take what this one takes."""

RULE = "schema"


def validate(
    objects: Sequence[Manifest], *, ray_crd: Path | None = None, kubernetes: str = KUBERNETES
) -> list[Finding]:
    """What is wrong with the objects' form.

    Args:
        objects: The manifests.
        ray_crd: File of KubeRay's CustomResourceDefinition of RayService.
        kubernetes: Version, such as 1.32.
    """
    found = list[Finding]()
    for one in objects:
        key = (str(one.get("apiVersion")), str(one.get("kind")))
        faults = _custom(one, SCHEMAS[key]) if key in SCHEMAS else _core(one, kubernetes)
        found += [Finding(RULE, title(one), fault) for fault in faults]
    for pod in workloads(by_kind(objects, "RayService", "RayJob")):
        body = {"apiVersion": "v1", "kind": "Pod", **pod.template}
        found += [Finding(RULE, pod.where, fault) for fault in _core(body, kubernetes)]
    if ray_crd is not None:
        found += _kuberay(objects, yaml.load(ray_crd.read_text("utf-8"), yaml.CSafeLoader))
    return found + _twice(objects)


def _core(one: Manifest, kubernetes: str) -> list[str]:
    validator = _validator(str(one.get("kind")), str(one.get("apiVersion")), kubernetes)
    if validator is None:
        return [
            f"{one.get('apiVersion')} {one.get('kind')} has no schema here, so it cannot be checked"
        ]
    return _errors(one, validator)


@functools.cache
def _validator(kind: str, api_version: str, kubernetes: str) -> Any:
    """The validator of one of Kubernetes' own kinds; None: it has no such kind."""
    # As kubernetes_validate.validate does, which reads megabytes of schemas anew for each object.
    group, _, version = api_version.rpartition("/")
    name = "-".join([kind.lower(), *filter(None, (group.split(".")[0], version))])
    schema = _schema(f"{name}.json", kubernetes)
    if schema is None:
        return None
    registry = Resource.from_contents(_schema("_definitions.json", kubernetes)) @ Registry()
    registry = Resource.from_contents(schema) @ registry
    return jsonschema.Draft202012Validator(schema, registry=registry)


@functools.cache
def _schema(name: str, kubernetes: str) -> Any:
    folder = resources.files("kubernetes_validate") / "kubernetes-json-schema"
    file = folder / f"v{kubernetes}.0-local-strict" / name
    return json.loads(file.read_text("utf-8")) if file.is_file() else None


def _custom(one: Manifest, schema: Schema) -> list[str]:
    whole: Schema = {
        "type": "object",
        "properties": {
            **{name: {"type": "string"} for name in ("apiVersion", "kind")},
            "metadata": {"type": "object", "required": ["name"]},
            "spec": schema,
        },
        "required": ["spec"],
        "additionalProperties": False,
    }
    return _errors(one, jsonschema.Draft202012Validator(whole))


def _errors(one: Any, validator: Any) -> list[str]:
    errors = validator.iter_errors(one)
    return [_told(error) for error in sorted(errors, key=lambda error: list(map(str, error.path)))]


def _told(error: jsonschema.ValidationError) -> str:
    place = ".".join(str(part) for part in error.absolute_path)
    return f"{place}: {error.message[:300]}"


def _twice(objects: Iterable[Manifest]) -> list[Finding]:
    seen, found = set[tuple[str, str]](), list[Finding]()
    for one in objects:
        key = (one["kind"], one["metadata"]["name"])
        if key in seen:
            found.append(Finding(RULE, title(one), "is there twice"))
        seen.add(key)
    return found


def _kuberay(objects: Iterable[Manifest], definition: Manifest) -> Iterator[Finding]:
    spec = _strict(_open_schema(definition))["properties"]["spec"]
    service = jsonschema.Draft202012Validator(spec)
    cluster = jsonschema.Draft202012Validator(spec["properties"]["rayClusterConfig"])
    for one in by_kind(objects, "RayService"):
        yield from (Finding(RULE, title(one), said) for said in _errors(one["spec"], service))
    # A RayJob's cluster has the very same schema; the rest of it is in our small one.
    for one in by_kind(objects, "RayJob"):
        body = one["spec"].get("rayClusterSpec", {})
        yield from (Finding(RULE, title(one), said) for said in _errors(body, cluster))


def _open_schema(definition: Manifest) -> Schema:
    versions = {version["name"]: version for version in definition["spec"]["versions"]}
    schema: Schema = versions["v1"]["schema"]["openAPIV3Schema"]
    return schema


def _strict(schema: Any) -> Any:
    """A structural schema as JSON schema: fields that it lacks are errors, Kubernetes' extensions are understood."""
    if not isinstance(schema, Mapping):
        return schema
    strict = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes")}
    if schema.get("x-kubernetes-int-or-string"):
        strict.pop("type", None)
        strict["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if strict.pop("nullable", False) and "type" in strict:
        strict["type"] = [strict["type"], "null"]
    for key in ("items", "additionalProperties"):
        if key in strict:
            strict[key] = _strict(strict[key])
    if "properties" in strict:
        strict["properties"] = {name: _strict(one) for name, one in strict["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict.setdefault("additionalProperties", False)
    return strict
