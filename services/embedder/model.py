"""An embedder in memory: what makes requests of a bundle, and the backend that answers them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from services.common.batching import BatchCounts
from services.embedder.backends import (
    GRAPHS,
    Array,
    Backend,
    Ids,
    InProcess,
    OnnxNetwork,
    TorchNetwork,
)
from services.embedder.settings import BackendName
from vlmir.bundle import Bundle
from vlmir.compute import Compute
from vlmir.errors import InputError, OptionError
from vlmir.parts import build_embedder, build_tokenizer
from vlmir.vlm.embedder import ImageEmbedding, ViewMaker, judge
from vlmir.vlm.tokenizer import Tokenizer

if TYPE_CHECKING:  # only a server that uses Triton needs its client
    from services.embedder.triton import Triton

__all__ = ["MOST_CHARACTERS", "BackendChoice", "EmbedderModel", "loader"]

log = logging.getLogger("vlmir.embedder")

MOST_CHARACTERS = 10_000
"""Characters of a caption; the tokenizer reads them all before it cuts."""


@dataclass(frozen=True, kw_only=True)
class EmbedderModel:
    """Embeds pictures, given as views, and captions."""

    views: ViewMaker
    """The views it wants."""
    labels: tuple[str, ...]
    """Degradation labels."""
    prototypes: Tensor
    """Typical f_D of each label, K×D."""
    typical: bool
    """Whether they take the place of a picture's own f_D."""
    tokenizer: Tokenizer
    context_length: int
    """Tokens of a caption, padding included."""
    backend: Backend
    """What computes."""

    async def embed_image(self, views_VCSS: Array, *, deadline: float | None) -> ImageEmbedding:
        """One picture's views, without mirror images → what the library's embedder sees in it.

        Raises:
            InputError: There are numbers that are none.
            VlmirError: What the backend raises.
        """
        if not np.isfinite(views_VCSS).all():
            raise InputError("pixels has values that are not finite; send normalised pixels.")
        seen = await self.backend.image(views_VCSS, deadline=deadline)
        f_I, f_D, logits = (torch.tensor(array) for array in seen)
        return judge(f_I, f_D, logits, self.prototypes, self.labels, typical=self.typical)

    async def embed_text(self, caption: str, *, deadline: float | None) -> Array:
        """One caption of a damaged picture → f_T, D.

        Raises:
            InputError: It is far too long.
            VlmirError: What the backend raises.
        """
        if len(caption) > MOST_CHARACTERS:
            raise InputError(
                f"The caption has {len(caption)} characters; at most {MOST_CHARACTERS} are taken."
            )
        return await self.backend.text(self._ids(caption), deadline=deadline)

    async def check(self) -> None:
        """Try whether the backend can answer; errors are the backend's."""
        await self.backend.check(*self._trial(1))

    def warm_up(self) -> None:
        """Compute once, outside the event loop."""
        self.backend.warm_up(*self._trial(self.views.shape[0]))

    def close(self) -> None:
        """Compute what waits, and give back threads."""
        self.backend.close()

    def _trial(self, views: int) -> tuple[Array, Ids]:
        """An input for the backend: so many views, and a caption."""
        return np.zeros((views, *self.views.shape[1:]), np.float32), self._ids("")

    def _ids(self, caption: str) -> Ids:
        ids: Ids = self.tokenizer([caption], self.context_length)[0].numpy()
        return ids


@dataclass(frozen=True, kw_only=True)
class BackendChoice:
    """Which backend, and what it needs."""

    name: BackendName
    """``auto``: Triton if there is a connection, else ONNX Runtime if the bundle has the files, else torch."""
    triton: Triton | None
    """The connection, if Triton's address was given."""
    patience_s: float
    """Seconds to wait for a Triton that is starting."""
    onnx: Path | None
    """Folder of the ONNX files; None: ``embedder/onnx`` or ``onnx`` within the bundle."""
    max_batch: int
    """Requests computed together at most, in this process."""
    capacity: int
    """Requests of a kind admitted at most."""
    counts: tuple[BatchCounts, BatchCounts]
    """Where batches of pictures, and of captions, are counted."""

    def make(self, bundle: Bundle) -> Backend:
        """The backend for a bundle; called outside the event loop.

        Raises:
            BundleError: What it needs of the bundle is missing or does not fit.
            OptionError: Triton is asked for without its address.
            UnavailableError: Triton cannot be reached, or does not have this embedder.
        """
        digest, folder = bundle.digests["embedder"], self._onnx_folder(bundle)
        backend: Backend
        if self.name == "triton" or (self.name == "auto" and self.triton is not None):
            if self.triton is None:
                raise OptionError(
                    "--backend triton needs Triton's address; give --triton HOST:PORT."
                )
            from services.embedder.triton import TritonBackend

            backend = TritonBackend.find(
                self.triton, digest, capacity=self.capacity, patience_s=self.patience_s
            )
        elif self.name == "onnxruntime" or (self.name == "auto" and _has_graphs(folder)):
            backend = self._in_process(OnnxNetwork(folder, digest))
        else:
            backend = self._in_process(
                TorchNetwork(build_embedder(bundle, Compute.choose("cpu").dtype))
            )
        log.info("embedding by %s", backend.name)
        return backend

    def _in_process(self, network: OnnxNetwork | TorchNetwork) -> InProcess:
        return InProcess(
            network, max_batch=self.max_batch, capacity=self.capacity, counts=self.counts
        )

    def _onnx_folder(self, bundle: Bundle) -> Path:
        if self.onnx is not None:
            return self.onnx
        beside = bundle.folder / "embedder" / "onnx"
        return beside if beside.is_dir() else bundle.folder / "onnx"


def _has_graphs(folder: Path) -> bool:
    return all((folder / f"{name}.onnx").is_file() for name in GRAPHS)


def loader(choice: BackendChoice) -> Callable[[Bundle], EmbedderModel]:
    """What makes a model of a bundle; the model raises what :meth:`BackendChoice.make` does."""

    def load(bundle: Bundle) -> EmbedderModel:
        config = bundle.preset.embedder
        return EmbedderModel(
            views=ViewMaker.of(config),
            labels=bundle.preset.labels,
            prototypes=_prototypes(bundle),
            typical=config.typical_damage,
            tokenizer=build_tokenizer(bundle),
            context_length=config.clip.text_cfg.context_length,
            backend=choice.make(bundle),
        )

    return load


def _prototypes(bundle: Bundle) -> Tensor:
    """Read alone: only one of the backends needs the other weights."""
    with safe_open(bundle.file("embedder", "model.safetensors"), framework="pt") as file:
        found: Tensor = file.get_tensor("prototypes").float()
    return found
