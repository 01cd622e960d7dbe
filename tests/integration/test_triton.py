"""The embedder's entries in a real Triton, where there is one; see ``triton.py`` for how it is found."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.integration.triton import needs_triton, running_triton
from tests.small import CAPTIONS
from training.onnx_export import export_onnx
from training.release.triton_repository import MAX_BATCH, write_entry
from vlmir.bundle import Bundle, load_bundle
from vlmir.parts import build_embedder
from vlmir.vlm.embedder import ClipEmbedder

NAMES = ("clip_image", "clip_text")

pytestmark = needs_triton


@pytest.fixture(scope="module")
def bundle(small_bundle_folder: Path) -> Bundle:
    return load_bundle(small_bundle_folder)


@pytest.fixture(scope="module")
def embedder(bundle: Bundle) -> ClipEmbedder:
    return build_embedder(bundle)


@pytest.fixture(scope="module")
def triton(
    bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[InferenceServerClient]:
    """Serves both models, whose repository also has the plain files in it, as the command leaves it."""
    repository = tmp_path_factory.mktemp("models")
    for graph in export_onnx(bundle):
        write_entry(repository, graph.name, graph.data, backend="python")
        (repository / f"{graph.name}.onnx").write_bytes(graph.data)
    with (
        running_triton(repository, tmp_path_factory.mktemp("triton")) as found,
        InferenceServerClient(found.address) as client,
    ):
        yield client


def ask(
    triton: InferenceServerClient, model: str, source: str, batch: np.ndarray
) -> dict[str, np.ndarray]:
    tensor = InferInput(source, list(batch.shape), np_to_triton_dtype(batch.dtype))
    tensor.set_data_from_numpy(batch)
    answer = triton.infer(model, [tensor], client_timeout=60)
    return {o.name: answer.as_numpy(o.name) for o in answer.get_response().outputs}


def test_the_models_are_ready_and_say_whose_they_are(
    triton: InferenceServerClient, bundle: Bundle
) -> None:
    for name in NAMES:
        assert triton.is_model_ready(name, "1")
        parameters = triton.get_model_config(name).config.parameters
        assert parameters["release"].string_value == bundle.release
        assert parameters["embedder"].string_value == bundle.digests["embedder"]


@pytest.mark.parametrize("batch", [1, 10])
def test_pictures_are_embedded_as_in_process(
    triton: InferenceServerClient, embedder: ClipEmbedder, batch: int
) -> None:
    rng = np.random.default_rng(batch)
    views = rng.normal(size=(batch, 6, 64, 64)).astype(np.float32)
    got = ask(triton, "clip_image", "views", views)
    f_I, f_D, logits = embedder.see(torch.from_numpy(views))
    np.testing.assert_allclose(got["f_I"], f_I, atol=1e-5)
    np.testing.assert_allclose(got["f_D"], f_D, atol=1e-5)
    np.testing.assert_allclose(got["degradations"], logits.softmax(-1), atol=1e-5)
    np.testing.assert_allclose(got["logits"], logits, atol=1e-4)


def test_requests_at_once_get_their_own_answers(
    triton: InferenceServerClient, embedder: ClipEmbedder
) -> None:
    captions = [f"{CAPTIONS[i % 3]} {'the ' * (i % 5)}" for i in range(24)]
    wanted = embedder.embed_captions(captions).numpy()
    batches = [embedder.tokenize([caption]).numpy() for caption in captions]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda ids: ask(triton, "clip_text", "ids", ids)["f_T"], batches))
    np.testing.assert_allclose(np.concatenate(got), wanted, atol=1e-5)


def test_other_sizes_are_refused(triton: InferenceServerClient) -> None:
    for shape in ((1, 3, 64, 64), (MAX_BATCH + 1, 6, 64, 64)):
        with pytest.raises(InferenceServerException, match=r"shape|batch-size") as refused:
            ask(triton, "clip_image", "views", np.zeros(shape, np.float32))
        assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
