"""The protos keep their conventions, and the stubs in the tree are generated from them."""

from __future__ import annotations

import importlib.metadata
import runpy
from importlib.resources import files
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

ROOT = Path(__file__).parents[3]
PINNED = {"grpcio-tools": "1.81.1", "mypy-protobuf": "5.1.0"}


def test_stubs_are_up_to_date() -> None:
    for package, version in PINNED.items():
        if importlib.metadata.version(package) != version:
            pytest.skip(f"stubs are compared with {package} {version} only")
    assert runpy.run_path(str(ROOT / "protos/generate.py"))["differences"]() == []


@pytest.fixture(scope="module")
def protos(tmp_path_factory: pytest.TempPathFactory) -> list[descriptor_pb2.FileDescriptorProto]:
    from grpc_tools import protoc

    out = tmp_path_factory.mktemp("protos") / "all.binpb"
    arguments = [
        "protoc",
        f"--proto_path={ROOT / 'protos'}",
        f"--proto_path={files('grpc_tools').joinpath('_proto')}",
        "--include_source_info",
        f"--descriptor_set_out={out}",
        *map(str, sorted(ROOT.glob("protos/vlmir/v1/*.proto"))),
    ]
    assert protoc.main(arguments) == 0
    return list(descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file)


def test_everything_is_commented(protos: list[descriptor_pb2.FileDescriptorProto]) -> None:
    # Path lengths 2 and 4 are a message, enum, service, and a field, value, rpc within it
    # (a oneof is a path of 4 too). Source info lists whole declarations by even lengths.
    kinds = {4, 5, 6}
    bare = [
        (file.name, list(place.path))
        for file in protos
        for place in file.source_code_info.location
        if len(place.path) in (2, 4)
        and place.path[0] in kinds
        and (len(place.path) == 2 or place.path[2] in (2, 8))
        and not place.leading_comments.strip()
        and not _synthetic(file, list(place.path))
    ]
    assert bare == []


def _synthetic(file: descriptor_pb2.FileDescriptorProto, path: list[int]) -> bool:
    """An optional field makes a oneof of its own, which nobody wrote."""
    if len(path) != 4 or path[0] != 4 or path[2] != 8:
        return False
    return file.message_type[path[1]].oneof_decl[path[3]].name.startswith("_")


def test_enums_begin_unspecified(protos: list[descriptor_pb2.FileDescriptorProto]) -> None:
    enums = [enum for file in protos for enum in file.enum_type]
    assert enums
    for enum in enums:
        first = enum.value[0]
        assert first.number == 0 and first.name.endswith("_UNSPECIFIED")
        prefix = first.name.removesuffix("UNSPECIFIED")
        assert all(value.name.startswith(prefix) for value in enum.value)


def test_each_service_says_who_it_is(protos: list[descriptor_pb2.FileDescriptorProto]) -> None:
    services = {service.name: service for file in protos for service in file.service}
    assert set(services) == {
        "CaptionerService",
        "EmbedderService",
        "RestorerService",
        "SamplerService",
    }
    for service in services.values():
        assert "Info" in [method.name for method in service.method]


def test_each_rpc_has_messages_of_its_own(
    protos: list[descriptor_pb2.FileDescriptorProto],
) -> None:
    types = [
        name
        for file in protos
        for service in file.service
        for method in service.method
        for name in (method.input_type, method.output_type)
    ]
    assert len(types) == len(set(types))
