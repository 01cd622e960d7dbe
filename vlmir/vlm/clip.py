"""CLIP with a degradation controller and a LoRA caption encoder (paper, section 3.2; DA-CLIP, arXiv 2310.01018).

Three encoders share one space of dimension D:

* the frozen visual tower, steered by the controller's hidden states, gives f_I, the embedding of the *clean* content;
* the controller, a trained copy of that tower, gives f_D, the embedding of the *damage*;
* the caption encoder, the frozen text tower plus a low-rank update, gives f_T of a caption of the damaged picture.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vlmir.config import ClipConfig, EmbedderConfig
from vlmir.errors import BundleError

__all__ = [
    "Controller",
    "DegradationCLIP",
    "build_clip",
    "encode_tower",
    "load_lora",
    "lora_tensors",
    "merge_lora",
]


def build_clip(config: ClipConfig) -> Any:
    """An open_clip ``CLIP`` of the given sizes with random weights."""
    import dataclasses

    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    return CLIP(
        config.embed_dim,
        CLIPVisionCfg(**dataclasses.asdict(config.vision_cfg)),
        CLIPTextCfg(**dataclasses.asdict(config.text_cfg)),
    )


def encode_tower(tower: Any, pixels: Tensor, control: list[Tensor] | None = None) -> Tensor:
    """Run an open_clip visual tower, adding ``control[i]`` (B×N×width) after block i.

    Returns:
        B×D, not normalised.
    """
    x = tower._embeds(pixels)
    for i, block in enumerate(tower.transformer.resblocks):
        x = block(x)
        if control is not None:
            x = x + control[i]
    return cast(Tensor, tower._pool(x)[0] @ tower.proj)


class DetailStem(nn.Module):
    """A small residual network to f_D: local statistics of both views, which patch tokens learn slowly.

    Mean, standard deviation and maximum over the picture are pooled: how much of each texture (grain, blocks, streaks,
    smear) there is, wherever it is, and whether there is a single edge of a shadow or a single drop.
    """

    CHANNELS = (24, 48, 96, 128, 160)
    """Widths; each level halves the resolution."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 6
        for out in self.CHANNELS:
            layers += [_Convolution(channels, out, stride=2), nn.SiLU()]
            if channels > 6:  # at the first level it would cost as much as all the others together
                layers.append(_Residual(out))
            channels = out
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(3 * channels, embed_dim))

    def forward(self, pixels: Tensor) -> Tensor:
        """B×6×S×S normalised views → B×D."""
        features = self.body(pixels).float()
        std, mean = torch.std_mean(features, dim=(2, 3))
        peak = features.amax(dim=(2, 3))
        return cast(Tensor, self.head(torch.cat([mean, std, peak], dim=1)))


class _Residual(nn.Module):
    """Two convolutions around a skip (He et al. 2016); the identity until trained, so a shallow stem can be grown."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        last = _Convolution(channels, channels)
        self.body = nn.Sequential(_Convolution(channels, channels), nn.SiLU(), last)
        nn.init.zeros_(cast(Tensor, last[1].weight))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x + self.body(x))


class _Convolution(nn.Sequential):
    """3×3 convolution and batch normalisation."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )

    def fold(self) -> None:
        """Make one convolution of both; only for inference."""
        convolution, norm = cast(tuple[nn.Conv2d, nn.BatchNorm2d], tuple(self))
        self[0], self[1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()


class Controller(nn.Module):
    """A trained copy of the visual tower: reads the damage, and corrects the frozen tower's hidden states.

    Each block's hidden state passes a zero-initialised linear layer, so training starts from plain CLIP. As in the
    reference the order is reversed: block i of the frozen tower receives the hidden state of block n−1−i.
    """

    def __init__(self, tower: Any, *, detail: bool) -> None:
        super().__init__()
        self.tower = copy.deepcopy(tower)
        width = tower.class_embedding.shape[0]
        self.zero = nn.ModuleList(nn.Linear(width, width) for _ in tower.transformer.resblocks)
        for linear in self.zero:
            nn.init.zeros_(cast(nn.Linear, linear).weight)
            nn.init.zeros_(cast(nn.Linear, linear).bias)
        self.stem = DetailStem(tower.proj.shape[1]) if detail else None
        if detail:
            self._see_detail()

    def _see_detail(self) -> None:
        """Let the patch embedding read three more channels, and leave f_D to the stem until training says otherwise."""
        conv = self.tower.conv1
        wide = nn.Conv2d(6, conv.out_channels, conv.kernel_size, conv.stride, bias=False)
        with torch.no_grad():
            wide.weight[:, :3] = conv.weight
        self.tower.conv1 = wide
        nn.init.zeros_(self.tower.proj)

    def forward(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """B×(3|6)×S×S normalised pixels → f_D (B×D, not normalised) and the corrections for blocks 0…n−1."""
        x = self.tower._embeds(pixels)
        hidden = []
        for block, zero in zip(self.tower.transformer.resblocks, self.zero, strict=True):
            x = block(x)
            hidden.append(zero(x))
        return self._with_stem(self.tower._pool(x)[0] @ self.tower.proj, pixels), hidden[::-1]

    def damage(self, pixels: Tensor) -> Tensor:
        """f_D alone, B×D, not normalised, of B×(3|6)×S×S normalised pixels."""
        return self._with_stem(encode_tower(self.tower, pixels), pixels)

    def judging(self, dtype: torch.dtype) -> Controller:
        """A copy that gives f_D in another type, with batch normalisation folded into the convolutions."""
        one = copy.deepcopy(self).eval().requires_grad_(False)
        for module in one.modules():
            if isinstance(module, _Convolution):
                module.fold()
        one.to(dtype).to(memory_format=torch.channels_last)
        if one.stem is not None:
            one.stem.head.float()  # it reads statistics, which are summed in float32
        return one

    def _with_stem(self, f_D: Tensor, pixels: Tensor) -> Tensor:
        """The tower's f_D and what the convolutional path adds to it, where there is one."""
        return f_D if self.stem is None else f_D + self.stem(pixels)


class DegradationCLIP(nn.Module):
    """The embedder's network: frozen CLIP, controller, LoRA caption encoder, and two learnt temperatures.

    ``label_embeddings`` (K×D) are the frozen text tower's embeddings of the labels; ``prototypes`` (K×D) are the
    typical f_D of each label, which stand in for f_D where a user names the damage.
    """

    label_embeddings: Tensor
    prototypes: Tensor

    def __init__(
        self,
        config: EmbedderConfig,
        label_count: int,
        clip: Any | None = None,
        *,
        lora: bool = True,
    ) -> None:
        """Build the network.

        Args:
            config: Sizes and switches.
            label_count: Number K of degradation labels.
            clip: Pretrained CLIP to start from, open_clip's or ours; None builds one with random weights.
            lora: Whether the caption encoder carries trainable LoRA layers; without them it is a plain copy, into
                which :func:`merge_lora` adds trained updates.
        """
        super().__init__()
        self.config = config
        self.clip = clip if clip is not None else build_clip(config.clip)
        self.clip.requires_grad_(False)
        self.controller = Controller(self.clip.visual, detail=config.detail).requires_grad_(True)
        self.caption_encoder = (
            _lora_text_encoder(self.clip, config) if lora else _TextEncoder(self.clip)
        )
        self.logit_scale = nn.Parameter(self.clip.logit_scale.detach().clone())
        self.degradation_scale = nn.Parameter(self.clip.logit_scale.detach().clone())
        empty = torch.zeros(label_count, config.clip.embed_dim)
        self.register_buffer("label_embeddings", empty)
        self.register_buffer("prototypes", empty.clone())

    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """B×(3|6)×S×S normalised views → (f_I, f_D), each B×D, not normalised."""
        f_D, control = self.controller(pixels)
        return self.encode_content(pixels, control), f_D

    def encode_content(self, pixels: Tensor, control: list[Tensor]) -> Tensor:
        """f_I, B×D, of B×(3|6)×S×S normalised views by the frozen tower under the controller's corrections."""
        return encode_tower(self.clip.visual, pixels[:, :3], control)

    def encode_text(self, ids: Tensor) -> Tensor:
        """B×L ids of clean text (GT captions, label names) → B×D by the frozen text tower, not normalised."""
        return cast(Tensor, self.clip.encode_text(ids))

    def encode_caption(self, ids: Tensor) -> Tensor:
        """B×L ids of captions of damaged pictures → f_T, B×D by the LoRA encoder, not normalised."""
        return cast(Tensor, self.caption_encoder(ids))

    def degradation_logits(self, f_D: Tensor) -> Tensor:
        """Scaled cosine similarity of f_D (B×D) with the K label embeddings: B×K logits."""
        similarity = F.normalize(f_D, dim=-1) @ F.normalize(self.label_embeddings, dim=-1).T
        return self.degradation_scale.exp() * similarity

    @torch.no_grad()
    def set_labels(self, ids_KL: Tensor) -> None:
        """Embed the label names; until prototypes are measured, these stand in for them too.

        With ``orthogonal_labels`` the nearest orthonormal frame takes their place (Löwdin's symmetric
        orthogonalisation): words that a small CLIP never met lie too close together to tell damages apart.
        """
        labels = F.normalize(self.encode_text(ids_KL), dim=-1)
        if self.config.orthogonal_labels:
            u, _, vh = torch.linalg.svd(labels, full_matrices=False)
            labels = u @ vh
        self.label_embeddings.copy_(labels)
        self.prototypes.copy_(labels)


class _TextEncoder(nn.Module):
    """A copy of CLIP's text side alone, with the module names that LoRA targets."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        text = copy.deepcopy(clip)
        del text.visual
        self.text = text

    def forward(self, ids: Tensor) -> Tensor:
        return cast(Tensor, self.text.encode_text(ids))


_LORA_NAME = re.compile(
    r"caption_encoder\.base_model\.model\.text\.(.+)\.lora_([AB])\.default\.weight"
)


def lora_tensors(network: DegradationCLIP) -> dict[str, Tensor]:
    """The trained updates: ``<module of the text tower>.A`` (r×in) and ``.B`` (out×r) for each."""
    found = ((_LORA_NAME.fullmatch(name), p) for name, p in network.named_parameters())
    return {f"{match[1]}.{match[2]}": p.detach() for match, p in found if match}


@torch.no_grad()
def load_lora(network: DegradationCLIP, tensors: Mapping[str, Tensor]) -> None:
    """Set the updates of a network with trainable ones to those that :func:`lora_tensors` gave.

    Raises:
        BundleError: They are of other modules.
    """
    own = lora_tensors(network)
    if own.keys() != tensors.keys():
        raise BundleError("The LoRA updates are not those of this network's modules.")
    for name, parameter in own.items():
        parameter.copy_(tensors[name])


@torch.no_grad()
def merge_lora(network: DegradationCLIP, tensors: Mapping[str, Tensor]) -> None:
    """Add the updates W += (alpha / r) B A to the plain caption encoder of ``network``.

    Raises:
        BundleError: An update has no matching module or shape.
    """
    config = network.config.lora
    weights = dict(cast(_TextEncoder, network.caption_encoder).text.named_parameters())
    for name in sorted({key.rsplit(".", 1)[0] for key in tensors}):
        try:
            update = tensors[f"{name}.B"] @ tensors[f"{name}.A"]
            weights[f"{name}.weight"] += config.alpha / config.rank * update
        except (KeyError, RuntimeError) as error:
            raise BundleError(f"The LoRA update {name!r} does not fit the text tower.") from error


def _lora_text_encoder(clip: Any, config: EmbedderConfig) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=config.lora.rank,
        lora_alpha=int(config.lora.alpha),
        target_modules=list(config.lora.target_modules),
    )
    return cast(nn.Module, get_peft_model(cast(Any, _TextEncoder(clip)), lora))
