"""What a distillation will need, before anything is bought or downloaded: `plan`.

Nothing is computed, and no more is read than configs and headers; a base model that is not here is
taken to have the shape of SD1.5, a motion module that of AnimateDiff v2.
"""

import functools
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from ...motion_module import checkpoint
from ...motion_module.config import MotionModuleConfig
from ...motion_module.module import MotionModule
from ..data import latent_shards
from ..data.url_cache import is_url
from ..library_errors import one_sentence
from ..miniature.names import base_path, motion_module_path
from ..models import sd15_config
from ..models.haar_vae import HaarVAE
from ..models.headers import empty_unet
from ..models.latent_size import check_size, pixels_per_latent
from . import batches, memory_estimate
from .config import Pool, Stage, TrainConfig
from .discriminator import Discriminator, Encoder
from .memory_estimate import GIB, Shapes


@dataclass(frozen=True)
class EmptyNetworks:
    """A process's networks without weights.

    frozen: parameters of all its base models; factor: pixels per latent; shapes: of a forward.
    """

    unet: UNet2DConditionModel
    motion_module: MotionModule
    encoder: Encoder
    frozen: int
    factor: int
    shapes: Shapes

    def student_activations(self, shapes: Shapes) -> int:
        """Return bytes of activations of a student's forward and backward."""
        return memory_estimate.of_student(self.unet, self.motion_module, shapes)


def describe_plan(config: TrainConfig, world_size: int) -> str:
    """Return what the ranks load and read, and what each stage costs; ValueError where the clips
    cannot be shared out over so many processes, or a base model cannot draw the size."""
    return "\n".join(
        [*_of_ranks(config, world_size), "", *_of_stages(config, world_size), "", *_missing(config)]
    )


def list_missing_files(config: TrainConfig) -> list[str]:
    """Return the models and pools of a config that are not here; URLs are not looked at."""
    models = [motion_module_path(m) for m in config.motion_modules]
    bases = (*config.bases, config.discriminator_base, *config.unseen_bases)
    models += [base_path(b) for b in bases]
    table = config.validation
    models += [f for f in (table.prompts, table.i3d) if f is not None] if table else []
    here = [str(p) for p in models if not p.exists()]
    pools = [place for place, here in map(_place_of, config.pools.values()) if not here]
    return list(dict.fromkeys([*here, *pools]))


def estimate_memory(config: TrainConfig, stage: Stage, networks: EmptyNetworks) -> float:
    """Return the estimated GiB that a process needs for a stage."""
    dtype = getattr(torch, config.frozen_dtype)
    motion = memory_estimate.count(networks.motion_module)
    weights = memory_estimate.frozen(networks.frozen + motion, dtype)
    weights += memory_estimate.trained(motion, averaged=stage.ema > 0)
    if config.validation is not None:  # the undistilled module, the one measured, and the best one
        weights += memory_estimate.frozen(motion, dtype)
        copies = 1 + config.validation.keep_best
        weights += memory_estimate.frozen(motion, torch.float32) * copies
    narrow = config.dtype_of(stage) == "bfloat16"
    shapes = replace(networks.shapes, dtype=torch.bfloat16 if narrow else torch.float32)
    if stage.loss == "distribution":  # beside the stage's teacher the undistilled one, and the fake
        weights += memory_estimate.frozen(motion, dtype)
        weights += memory_estimate.trained(motion, averaged=False)
    activations = networks.student_activations(shapes)
    if stage.loss == "adversarial":
        phases = [p for p in stage.phases if stage.loss_of(p) == "adversarial"]
        nets = [_discriminator(config, networks, p.conditional) for p in phases]
        weights += max(memory_estimate.trained(memory_estimate.count(d), False) for d in nets)
        measure = functools.partial(memory_estimate.of_discriminator, networks.unet, shapes=shapes)
        beside_student = max(measure(d, states=1) for d in nets)
        activations = max(activations + beside_student, *(measure(d, states=2) for d in nets))
    return (weights + activations) / GIB


def build_networks(config: TrainConfig, slots: Collection[int]) -> EmptyNetworks:
    """Return the networks of a process that holds some slots."""
    first = config.slots[min(slots)].base
    backbone = _unet(_local_path(config.discriminator_base))
    encoder = Encoder(
        backbone, _motion_module(config.discriminator_motion_module), len(config.bases), None
    )
    text_encoder, vae = _text_and_vae(_local_path(first))
    factor = pixels_per_latent(vae.config)
    shapes = Shapes(
        config.clips_per_rank,
        config.frames,
        config.height // factor,
        config.width // factor,
        text_encoder.config.max_position_embeddings,
        torch.bfloat16 if config.dtype == "bfloat16" else torch.float32,
        config.gradient_checkpointing,
    )
    return EmptyNetworks(
        _unet(_local_path(first)),
        _motion_module(config.teacher),
        encoder,
        _frozen(config, slots),
        factor,
        shapes,
    )


def _frozen(config: TrainConfig, slots: Collection[int]) -> int:
    """Return the parameters of the base models of a process that holds some slots."""
    names = {*(config.slots[s].base for s in slots), config.discriminator_base}
    names |= set(config.unseen_bases)
    return sum(_parameters(_local_path(name)) for name in names)


@functools.cache
def _parameters(base: Path | None) -> int:
    return memory_estimate.count(_unet(base), *_text_and_vae(base))


def _of_ranks(config: TrainConfig, world_size: int) -> Iterator[str]:
    shares = [batches.share_out(config, rank, world_size) for rank in range(world_size)]
    accumulations = len(shares[0])
    yield (
        f"{world_size} processes, {config.global_batch} clips a step: {accumulations} "
        f"accumulation{'s' * (accumulations > 1)} of {config.clips_per_rank}."
    )
    lines: dict[str, list[int]] = {}
    for rank, share in enumerate(shares):
        slots = sorted({slot for slot, _ in share})
        line = "; ".join(f"{config.slots[s].base} <- {config.slots[s].pool}" for s in slots)
        lines.setdefault(line, []).append(rank)
    for line, ranks in lines.items():
        yield f"  rank {_ranges(ranks)}: {line}"


def _of_stages(config: TrainConfig, world_size: int) -> Iterator[str]:
    shares = (batches.share_out(config, rank, world_size) for rank in range(world_size))
    slots_of_ranks = {frozenset(slot for slot, _ in share) for share in shares}
    networks = build_networks(config, max(slots_of_ranks, key=lambda slots: _frozen(config, slots)))
    check_size(config.width, config.height, networks.factor)
    motion = memory_estimate.count(networks.motion_module)
    told = [f"{motion:,} parameters of the motion module"]
    losses = {stage.loss for stage in config.stages}
    if "adversarial" in losses:
        critic = memory_estimate.count(_discriminator(config, networks, conditional=True))
        told.append(f"{critic:,} of the discriminator")
    if "distribution" in losses:
        told.append(f"{motion:,} of the fake motion module")
    yield f"trained: {', '.join(told)}; frozen: at most {networks.frozen:,} a process."
    # by what they depend on, since a forward of shapes takes a second
    estimates: dict[object, float] = {}
    for stage in config.stages:
        phases = {(stage.loss_of(p), p.conditional) for p in stage.phases}
        costs = (stage.loss, stage.ema > 0, config.dtype_of(stage), frozenset(phases))
        if costs not in estimates:
            estimates[costs] = estimate_memory(config, stage, networks)
        iterations = sum(p.iterations for p in stage.phases)
        clips = sum(p.iterations * stage.critic_of(p).steps for p in stage.phases)
        yield (
            f"  {stage.teacher_steps:>4} -> {stage.student_steps:<3} {stage.loss:<11} "
            f"{iterations:>6} steps, {clips * config.global_batch:>9,} clips, about "
            f"{estimates[costs]:.1f} GiB a process at most (estimated)"
        )


def _missing(config: TrainConfig) -> Iterator[str]:
    missing = list_missing_files(config)
    yield "all files are present." if not missing else f"missing files ({len(missing)}):"
    yield from (f"  {file}" for file in missing)


def _place_of(pool: Pool) -> tuple[str, bool]:
    """Return where a pool lies, and whether it is there."""
    if pool.shards is None:
        return str(pool.prompts), pool.prompts is not None and pool.prompts.is_file()
    return pool.shards, _is_here(pool.shards)


def _is_here(shards: str) -> bool:
    """Tell whether every shard of a pool is here, or behind a URL, which is not looked at."""
    if is_url(shards):
        return True
    try:
        return bool(latent_shards.find_shards(shards))
    except ValueError:  # one that a pattern names is missing
        return False


def _discriminator(
    config: TrainConfig, networks: EmptyNetworks, conditional: bool
) -> Discriminator:
    table = config.discriminator
    with torch.device("meta"):
        return Discriminator(
            networks.encoder,
            conditional=conditional,
            head_channels=table.head_channels,
            head_blocks=table.head_blocks,
            generator=None,
        )


def _local_path(base: str) -> Path | None:
    """Return a base model's path, or None where it is not here, and so is like any other."""
    path = base_path(base)
    return path if path.exists() else None


@functools.cache
def _unet(base: Path | None) -> UNet2DConditionModel:
    """Return a base model's UNet without weights, frozen: all that ask share it."""
    if base is not None:
        return empty_unet(base).requires_grad_(False)
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(sd15_config.UNET).requires_grad_(False)


def _motion_module(name: str) -> MotionModule:
    path = motion_module_path(name)
    config = checkpoint.load(path).config if path.is_file() else MotionModuleConfig()
    with torch.device("meta"):
        return MotionModule(config)


def _text_and_vae(base: Path | None) -> tuple[CLIPTextModel, AutoencoderKL | HaarVAE]:
    text_config = CLIPTextConfig.from_dict(sd15_config.TEXT_ENCODER)
    config, kind = sd15_config.VAE, AutoencoderKL
    if base is not None and base.is_dir():
        with one_sentence(base.name):
            text_config = CLIPTextConfig.from_pretrained(base / "text_encoder")
            config = json.loads((base / "vae" / "config.json").read_text(encoding="utf-8"))
        if config.get("_class_name") == HaarVAE.__name__:
            kind = HaarVAE
    name = base.name if base is not None else "SD1.5"
    with one_sentence(name), torch.device("meta"):
        return CLIPTextModel(text_config), kind.from_config(config)


def _ranges(ranks: list[int]) -> str:
    """Return numbers as people write them: 0, 1, 8, 9, or the first few of many."""
    shown = ", ".join(map(str, ranks[:8]))
    return shown if len(ranks) <= 8 else f"{shown} and {len(ranks) - 8} more"
