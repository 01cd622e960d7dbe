"""An ONNX model under Triton's Python backend: a copy of this file, ``model.py``, lies beside ``model.onnx``.

Triton runs it in an interpreter of its own, which needs NumPy and ONNX Runtime and nothing of this package. It runs on
the CPU; a Triton with GPUs has the onnxruntime backend.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

__all__ = ["TritonPythonModel"]


class TritonPythonModel:
    """One instance of a version of a model with one input (the name is what Triton looks for)."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the version's file.

        Args:
            args: What Triton says of this instance: where the model's folder is, and which version.
        """
        file = Path(args["model_repository"], args["model_version"], "model.onnx")
        self._session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests that travelled together, each of one or more inputs, by one run of the network.

        Tensors go through DLPack both ways: with NumPy 2, Triton's own conversions silently give wrong numbers.

        Args:
            requests: Their tensors have fitting shapes and types; Triton refuses others.

        Returns:
            The answers, in the order of the requests. If the run fails, Triton tells every caller why.
        """
        tensors = [pb_utils.get_input_tensor_by_name(one, self._input) for one in requests]
        batches = [np.from_dlpack(tensor) for tensor in tensors]
        answers = self._session.run(self._outputs, {self._input: np.concatenate(batches)})
        ends = np.cumsum([len(batch) for batch in batches])[:-1]
        shares = zip(*(np.split(answer, ends) for answer in answers), strict=True)
        return [pb_utils.InferenceResponse(self._tensors(share)) for share in shares]

    def _tensors(self, share: tuple[Any, ...]) -> list[Any]:
        """One request's rows of each output."""
        return [
            pb_utils.Tensor.from_dlpack(name, rows)
            for name, rows in zip(self._outputs, share, strict=True)
        ]
