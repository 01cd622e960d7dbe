"""What computes the embeddings: a network in this process, in batches, or Triton (see `services.embedder.triton`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from services.common.batching import BatchCounts, Batcher
from vlmir.errors import BundleError
from vlmir.vlm.embedder import ClipEmbedder, is_certain, with_mirrors

__all__ = [
    "GRAPHS",
    "Array",
    "Backend",
    "Ids",
    "InProcess",
    "Network",
    "OnnxNetwork",
    "Seen",
    "TorchNetwork",
    "voters",
]

Array: TypeAlias = npt.NDArray[np.float32]
Ids: TypeAlias = npt.NDArray[np.int64]

GRAPHS = ("clip_image", "clip_text")
"""The exported graphs: names of the ONNX files and of Triton's models."""


class Seen(NamedTuple):
    """What the network sees in one picture."""

    f_I: Array
    """Embedding of the whole picture's content, D."""
    f_D: Array
    """Embedding of the damage in the whole picture, D."""
    logits: Array
    """Logits of the labels in each view that was asked, the whole picture first: 1×K, or W×K."""

    @property
    def certain(self) -> bool:
        """Whether the whole picture leaves no doubt, see :func:`vlmir.vlm.embedder.is_certain`."""
        return is_certain(
            torch.tensor(self.logits[0])
        )  # a copy: Triton gives arrays that are read-only

    def with_votes(self, logits_WK: Array) -> Seen:
        """The same with the logits of the other views behind the whole picture's."""
        return self._replace(logits=np.concatenate([self.logits, logits_WK]))


def voters(views_VCSS: Array) -> Array:
    """The views that have a say in the label beside the whole picture, mirror images among them: (W - 1)×C×S×S."""
    others: Array = with_mirrors(torch.tensor(views_VCSS))[1:].numpy()  # what came may be read-only
    return others


class Backend(Protocol):
    """Computes for many callers at once."""

    @property
    def name(self) -> str:
        """Where and by what it computes, such as "cpu, onnxruntime"."""

    @property
    def depth(self) -> int:
        """Requests admitted and not yet answered."""

    @property
    def capacity(self) -> int:
        """Requests admitted at most."""

    async def image(self, views_VCSS: Array, *, deadline: float | None) -> Seen:
        """What is seen in the views of one picture.

        Args:
            views_VCSS: Normalised views, the whole picture first; the others, and mirror images of all, are asked
                only where it leaves doubt.
            deadline: Reading of ``time.monotonic``, or None.

        Raises:
            OverloadedError: Too many requests are waiting.
            DeadlineError: The deadline passed.
            UnavailableError: What computes cannot be reached.
        """

    async def text(self, ids_L: Ids, *, deadline: float | None) -> Array:
        """f_T (D) of one caption's token ids; errors are those of :meth:`image`."""

    async def check(self, views_VCSS: Array, ids_L: Ids) -> None:
        """Try whether requests can be answered at present, however many are waiting.

        Raises:
            VlmirError: They cannot.
        """

    def warm_up(self, views_VCSS: Array, ids_L: Ids) -> None:
        """Compute once, outside the event loop."""

    def close(self) -> None:
        """Compute what waits, and give back threads."""


class Network(Protocol):
    """Computes batches in this process."""

    name: str

    def wholes(self, views_BCSS: Array) -> tuple[Array, Array, Array]:
        """B whole pictures as views → f_I (B×D), f_D (B×D), logits (B×K)."""

    def votes(self, views_BCSS: Array) -> Array:
        """B other views → their logits, B×K."""

    def texts(self, ids_BL: Ids) -> Array:
        """B captions → f_T, B×D."""


class TorchNetwork:
    """The embedder of a bundle as it is."""

    def __init__(self, embedder: ClipEmbedder) -> None:
        self._embedder = embedder
        self.name = f"{embedder.network.logit_scale.device}, torch"

    def wholes(self, views_BCSS: Array) -> tuple[Array, Array, Array]:
        """B whole pictures as views → f_I (B×D), f_D (B×D), logits (B×K)."""
        f_I, f_D, logits = self._embedder.see(torch.from_numpy(views_BCSS))
        return f_I.numpy(), f_D.numpy(), logits.numpy()

    def votes(self, views_BCSS: Array) -> Array:
        """B other views → their logits, B×K."""
        logits: Array = self._embedder.vote(torch.from_numpy(views_BCSS)).numpy()
        return logits

    def texts(self, ids_BL: Ids) -> Array:
        """B captions → f_T, B×D."""
        f_T: Array = self._embedder.embed_ids(torch.from_numpy(ids_BL)).numpy()
        return f_T


class OnnxNetwork:
    """The exported graphs in ONNX Runtime.

    Args:
        folder: Where ``clip_image.onnx`` and ``clip_text.onnx`` lie.
        digest: Of the embedder that they must have been made from.

    Raises:
        BundleError: A file is missing, damaged, or made from another embedder.
    """

    name = "cpu, onnxruntime"

    def __init__(self, folder: Path, digest: str) -> None:
        self._image, self._text = (_session(folder / f"{name}.onnx", digest) for name in GRAPHS)

    def wholes(self, views_BCSS: Array) -> tuple[Array, Array, Array]:
        """B whole pictures as views → f_I (B×D), f_D (B×D), logits (B×K)."""
        f_I, f_D, logits = self._image.run(["f_I", "f_D", "logits"], {"views": views_BCSS})
        return f_I, f_D, logits

    def votes(self, views_BCSS: Array) -> Array:
        """B other views → their logits, B×K."""
        (logits,) = self._image.run(["logits"], {"views": views_BCSS})
        found: Array = logits
        return found

    def texts(self, ids_BL: Ids) -> Array:
        """B captions → f_T, B×D."""
        (f_T,) = self._text.run(["f_T"], {"ids": ids_BL})
        found: Array = f_T
        return found


def _session(file: Path, digest: str) -> Any:
    if not file.is_file():
        raise BundleError(
            f"{file} is missing; write it with `python -m training.onnx_export`, or use --backend torch."
        )
    import onnxruntime  # only this backend needs it

    options = onnxruntime.SessionOptions()
    # Whoever limits torch's threads means these, too.
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the binding raises classes of its own, derived from Exception
        raise BundleError(f"{file} is no ONNX file that can be run: {error}") from error
    if session.get_modelmeta().custom_metadata_map.get("embedder") != digest:
        raise BundleError(
            f"{file} was made from another embedder; write it anew with `python -m training.onnx_export`."
        )
    return session


class InProcess:
    """A network in this process, behind a batch thread for pictures and one for captions.

    Args:
        network: What computes.
        max_batch: Requests computed together at most.
        capacity: Pictures, and captions, admitted at most.
        counts: Where batches of pictures, and of captions, are counted.
    """

    def __init__(
        self,
        network: Network,
        *,
        max_batch: int,
        capacity: int,
        counts: tuple[BatchCounts, BatchCounts],
    ) -> None:
        self._network = network
        self.name = network.name
        self.pictures = Batcher[Array, Seen](
            self._see, max_batch=max_batch, capacity=capacity, counts=counts[0]
        )
        """Views of pictures, V×C×S×S, all of one shape."""
        self.captions = Batcher[Ids, Array](
            lambda ids: list(network.texts(np.stack(ids))),
            max_batch=max_batch,
            capacity=capacity,
            counts=counts[1],
        )
        """Token ids of captions, L."""

    @property
    def depth(self) -> int:
        """Requests admitted and not yet answered."""
        return self.pictures.depth + self.captions.depth

    @property
    def capacity(self) -> int:
        """Requests admitted at most."""
        return self.pictures.capacity + self.captions.capacity

    async def image(self, views_VCSS: Array, *, deadline: float | None) -> Seen:
        """What is seen in the views of one picture; errors are those of :class:`Batcher`."""
        return await self.pictures(views_VCSS, deadline=deadline)

    async def text(self, ids_L: Ids, *, deadline: float | None) -> Array:
        """f_T (D) of one caption; errors are those of :class:`Batcher`."""
        return await self.captions(ids_L, deadline=deadline)

    async def check(self, views_VCSS: Array, ids_L: Ids) -> None:
        """Nothing to try: a network in this process lives as long as the process."""

    def warm_up(self, views_VCSS: Array, ids_L: Ids) -> None:
        """Compute everything once, votes too, that a request may need."""
        self._network.wholes(views_VCSS[:1])
        if len(views_VCSS) > 1:
            self._network.votes(voters(views_VCSS))
        self._network.texts(ids_L[None])

    def close(self) -> None:
        """Compute what waits, and end the threads."""
        self.pictures.close()
        self.captions.close()

    def _see(self, pictures: list[Array]) -> list[Seen]:
        f_I, f_D, logits = self._network.wholes(np.stack([views[0] for views in pictures]))
        seen = [Seen(*one) for one in zip(f_I, f_D, logits[:, None], strict=True)]
        doubtful = [place for place, one in enumerate(seen) if not one.certain]
        if doubtful and len(pictures[0]) > 1:
            others = np.concatenate([voters(pictures[place]) for place in doubtful])
            votes = np.split(self._network.votes(others), len(doubtful))
            for place, of_one in zip(doubtful, votes, strict=True):
                seen[place] = seen[place].with_votes(of_one)
        return seen
