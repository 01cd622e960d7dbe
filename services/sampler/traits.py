"""What a caller must know of a sampler to plan a picture."""

from __future__ import annotations

from vlmir.sampling import DiffusionSampler
from vlmir.v1 import sampler_pb2

__all__ = ["traits"]


def traits(sampler: DiffusionSampler) -> sampler_pb2.SamplerServiceInfoResponse:
    """The fields of the answer to ``Info`` that the weights decide."""
    return sampler_pb2.SamplerServiceInfoResponse(
        solvers=sampler.solvers,
        default_solver=sampler.config.solver,
        default_steps=sampler.config.steps,
        most_steps=sampler.most_steps,
        reads_captions=sampler.reads_captions,
        wide_labels=sampler.wide_labels,
        mean_evaluations=sampler.mean_states,
        tile=sampler.config.tile,
        overlap=sampler.config.overlap,
        align=sampler.unet.multiple,
    )
