"""What `make deploy` ends with: a picture restored by the real client, through a port that kubectl forwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.manifests.smoke import smoke
from services.restorer.demo import embedded_server
from tests.unit.deploy.fake_cluster import Cluster
from tests.unit.deploy.manifests import needs_kubectl, rendered

pytestmark = needs_kubectl


def test_a_picture_is_restored_through_the_forwarded_port(
    small_bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = rendered("dev")
    cluster = Cluster(tmp_path, monkeypatch)
    with embedded_server(str(small_bundle_folder)) as address:
        port = address.rpartition(":")[2]
        cluster.has("port-forward", f"Forwarding from 127.0.0.1:{port} -> 50050")
        assert smoke(objects).startswith("a picture was restored by ")
    assert cluster.calls[-1][0] == "port-forward service/vlmir-gateway :50050"
