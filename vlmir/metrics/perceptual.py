"""LPIPS and FID: how natural restored pictures look, judged by networks whose weights the caller brings.

LPIPS (Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric") compares two
pictures by AlexNet's features; the code and the learnt linear heads are torchmetrics'. FID (Heusel et al. 2017, "GANs
Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium") compares two sets of pictures by
Inception's features; network and resizing are torch-fidelity's, which repeat the original TensorFlow code.

Nothing is ever downloaded here. The weights are files of the caller or of PyTorch's cache (:func:`cached`), read
without unpickling. Both metrics look at whole pictures, H×W×3 uint8 RGB, without cutting a border.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlmir.errors import BundleError, InputError

__all__ = ["ALEXNET", "INCEPTION", "InceptionFeatures", "Lpips", "cached", "frechet_distance"]

ALEXNET = "alexnet-owt-7be5be79.pth"
"""Name of torchvision's AlexNet file, at https://download.pytorch.org/models/."""
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
"""Name of torch-fidelity's Inception file, at https://github.com/toshas/torch-fidelity/releases/tag/v0.2.0."""

_LEAST = 31
"""Pixels a side below which nothing is left for AlexNet's third stage."""

Levels = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float64]


def cached(name: str) -> Path | None:
    """The file of that name in PyTorch's cache (``TORCH_HOME/hub/checkpoints``), or None: it is not there."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / name
    return file if file.is_file() else None


class Lpips:
    """LPIPS with the AlexNet backbone, version 0.1 of the heads."""

    def __init__(self, backbone: Path) -> None:
        """Read AlexNet.

        Args:
            backbone: torchvision's state dict of AlexNet, :data:`ALEXNET`.

        Raises:
            BundleError: The file is missing or holds something else.
        """
        # The public class would fetch AlexNet from the network; only this one takes a random backbone to fill.
        from torchmetrics.functional.image.lpips import _NoTrainLpips

        state = _read(backbone)
        self._network = _NoTrainLpips(net="alex", pnet_rand=True)
        layers = self._network.net.state_dict()
        try:
            # `slice2.3.weight` here is `features.3.weight` there.
            own = {name: state[f"features.{name.partition('.')[2]}"] for name in layers}
            self._network.net.load_state_dict(own)
        except (KeyError, RuntimeError) as error:
            raise BundleError(f"{backbone} does not hold AlexNet; give {ALEXNET}.") from error

    @torch.inference_mode()
    def __call__(self, restored: Levels, reference: Levels) -> float:
        """Distance of two pictures: 0 for equal ones, about 1 for quite different ones.

        Args:
            restored: H×W×3 uint8 RGB, both sides at least 31 pixels.
            reference: The true picture, of the same size.

        Raises:
            InputError: Sizes differ or are too small, or the type is wrong.
        """
        if restored.shape != reference.shape:
            raise InputError(
                f"Both pictures must be of one size, not {restored.shape} and {reference.shape}."
            )
        first, second = (_planes(picture) / 255 for picture in (restored, reference))
        return float(self._network(first, second, normalize=True))


class InceptionFeatures:
    """The 2,048 pooled features of Inception v3 by which FID is taken."""

    def __init__(self, weights: Path) -> None:
        """Read Inception.

        Args:
            weights: torch-fidelity's state dict, :data:`INCEPTION`.

        Raises:
            BundleError: The file is missing or holds something else.
        """
        from torch_fidelity import FeatureExtractorInceptionV3

        # The library unpickles its file without restraint: it is given a copy of the tensors alone instead.
        copy = io.BytesIO()
        torch.save(_read(weights), copy)
        copy.seek(0)
        try:
            self._network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], copy)
        except RuntimeError as error:
            raise BundleError(f"{weights} does not hold Inception; give {INCEPTION}.") from error

    @torch.inference_mode()
    def __call__(self, picture: Levels) -> Features:
        """H×W×3 uint8 RGB of any size → 2048 features.

        Raises:
            InputError: Shape or type is wrong, or the picture is very small.
        """
        features: Tensor = self._network(_planes(picture))[0][0]
        return features.double().numpy()


def frechet_distance(first: Features, second: Features) -> float:
    """Fréchet distance of two sets of features, each taken as a Gaussian: ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 √(Σ₁Σ₂)).

    With Σ = AᵀA, A the centred features over √(N − 1), the eigenvalues of √(Σ₁Σ₂) are the singular values of A₁A₂ᵀ.
    That is exact, and for fewer pictures than features both faster and better conditioned than the root of a D×D
    matrix without full rank.

    Args:
        first: N×D, N at least 2.
        second: M×D, M at least 2.

    Returns:
        At least 0 but for rounding. As FID it is biased upwards by few pictures: it should be taken over 2,048 or
        more, and over fewer compared only with that of the same pictures.

    Raises:
        InputError: A set has fewer than two pictures.
    """
    if min(len(first), len(second)) < 2:
        raise InputError("A Fréchet distance needs at least two pictures in each set.")
    means = [features.mean(axis=0) for features in (first, second)]
    roots = [
        (features - mean) / np.sqrt(len(features) - 1)
        for features, mean in zip((first, second), means, strict=True)
    ]
    shared = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    traces = sum(float((root**2).sum()) for root in roots)
    return float(((means[0] - means[1]) ** 2).sum() + traces - 2 * shared)


def _planes(picture: Levels) -> Tensor:
    """H×W×3 uint8 → 1×3×H×W uint8."""
    shape = picture.shape
    if picture.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or min(shape[:2]) < _LEAST:
        raise InputError(
            f"A picture must be H×W×3 uint8 of at least {_LEAST} pixels a side, not {shape} {picture.dtype}."
        )
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))[None]


def _read(path: Path) -> dict[str, Any]:
    """The tensors of a PyTorch file.

    Raises:
        BundleError: It is missing or no such file.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BundleError(f"The weights {path} cannot be read: {error.strerror}.") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise BundleError(f"{path} is no file of PyTorch tensors.") from error
    if not isinstance(state, dict):
        raise BundleError(f"{path} is no file of named PyTorch tensors.")
    return cast("dict[str, Any]", state)
