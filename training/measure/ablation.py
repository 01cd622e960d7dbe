"""The paper's ablations (Tables 3 and 4) on one trained network: conditions withheld, captions replaced.

The paper trained a network for each row of its Table 3. Here one network, which met every condition withheld now and
then in training, is given its learnt null in the condition's place.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from vlmir.bundle import Bundle
from vlmir.compute import Compute
from vlmir.options import RestoreOptions
from vlmir.parts import build_captioner, build_embedder, build_sampler
from vlmir.pipeline import Pixels, Restorer
from vlmir.sampling import Conditions, DiffusionSampler, Plan, SampleStep

__all__ = ["ABLATED", "VARIANTS", "Variant", "WithholdingSampler", "ablated_restorers"]

ABLATED = ("SOTS-indoor", "CBSD68 σ=50")
"""The benches it is done on: haze, as in the paper, and noise."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of an ablation."""

    withheld: tuple[str, ...] = ()
    """Conditions whose learnt null is used instead: fields of :class:`vlmir.sampling.Conditions`."""
    caption: str | None = None
    """Said of every picture; None: the caption of the LQ picture."""

    @property
    def options(self) -> RestoreOptions:
        """The default setting, one step, with the variant's caption."""
        return RestoreOptions(caption=self.caption)


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "none": Variant(withheld=("f_T", "f_I")),
        "SCA": Variant(withheld=("f_I",)),
        "ICA": Variant(withheld=("f_T",)),
        "SCA&ICA": Variant(),
        "SCA&ICA, no f_D": Variant(withheld=("f_D",)),
        "This is a photo": Variant(caption="This is a photo"),
    }
)
"""Rows of Tables 3 and 4; `ICA` is also Table 4's null, `SCA&ICA` its LQ caption; `none` and `no f_D` are ours."""


class WithholdingSampler(DiffusionSampler):
    """A sampler that never sees some of the conditions."""

    def __init__(self, sampler: DiffusionSampler, withheld: Sequence[str]) -> None:
        super().__init__(sampler.unet, sampler.config, sampler.adapted)
        self._nothing = dict.fromkeys(withheld)

    def sample(
        self,
        pictures: Sequence[Pixels],
        conditions: Sequence[Conditions],
        seeds: Sequence[int],
        plan: Plan,
    ) -> Generator[SampleStep, None, list[Pixels]]:
        """As :meth:`DiffusionSampler.sample`, with the learnt null for every withheld condition."""
        known = [condition._replace(**self._nothing) for condition in conditions]
        return super().sample(pictures, known, seeds, plan)


def ablated_restorers(bundle: Bundle) -> dict[str, Restorer]:
    """A restorer for each of :data:`VARIANTS`; they share one set of weights.

    Raises:
        BundleError: The bundle's files do not fit its preset.
    """
    config = bundle.preset.sampler
    captioner, embedder = build_captioner(bundle), build_embedder(bundle)
    sampler = build_sampler(bundle, Compute.choose())
    return {
        name: Restorer(
            captioner=captioner,
            embedder=embedder,
            sampler=WithholdingSampler(sampler, variant.withheld),
            release=bundle.release,
            digests=bundle.digests,
            solver=config.solver,
            steps=config.steps,
        )
        for name, variant in VARIANTS.items()
    }
