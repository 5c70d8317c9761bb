"""`data generate`: clips of (base model, prompt) pairs, sampled by the teacher, as latent shards.

AnimateDiff-Lightning section 3.3: DPM-Solver++ 32 steps, cfg 7.5. Processes share the shards out by
number and never talk; a run that was killed goes on with the clips that it has.
"""

import itertools
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ...motion_module import checkpoint
from ...motion_module.files import atomic_path
from ..engine import distributed
from ..files import claim
from ..library_errors import one_sentence
from ..miniature import split, world
from ..miniature.names import base_path, is_miniature, motion_module_path
from ..models.base_model import BaseModel, load_base, quiet_libraries
from ..models.devices import choose_dtype, my_device
from ..models.headers import check_fit, empty_unet
from ..models.latent_size import check_size
from ..models.latents import decode_images, encode_images
from ..sampling.ranges import check_range
from ..sampling.sample import generate_latents
from . import latent_shards
from .generate_request import RECORD, DataRequest, PlannedClip, ShardPlan, plan_clip, plan_shards

logger = logging.getLogger(__name__)


def generate_clips(
    request: DataRequest, rank: int | None = None, world_size: int | None = None
) -> list[Path]:
    """Make this process's shards, those numbered rank modulo world_size, and return the files.

    Rank and world size are torchrun's by default. Raises ValueError, before any clip is made, for
    models that are missing or unfit, and where the folder holds another command's clips.
    """
    quiet_libraries()
    rank, world_size = distributed.share(rank, world_size)
    studio = Studio(request)
    sizes = studio.sizes()
    claim.claim_shards(request.out / RECORD, request.fingerprint(), "clips")
    shards = plan_shards(request, sizes)
    mine = shards[rank::world_size]
    missing = [shard for shard in mine if not (request.out / shard.name).is_file()]
    with tqdm(total=sum(len(s.clips) for s in missing), unit="clip", disable=None) as bar:
        for shard in missing:
            _make_shard(studio, shard, bar)
    for shard in mine:  # a kill between the two last acts of a shard leaves its folder
        shutil.rmtree(_work_folder(request, shard), ignore_errors=True)
    if all((request.out / shard.name).is_file() for shard in shards):  # the last process
        latent_shards.open_shards(str(request.out))  # brings index.json up to date
    return [request.out / shard.name for shard in mine]


def draw_captions(count: int, seed: int) -> tuple[str, ...]:
    """Return captions of the combinations that the miniature was trained on, none held out."""
    check_range("--miniature-captions", count, 1)
    generator = torch.Generator().manual_seed(seed)
    return tuple(split.draw_scenes(count, generator).captions())


class Studio:
    """The models that make clips; one base model at a time is in memory."""

    def __init__(self, request: DataRequest) -> None:
        self.request = request
        self._device = my_device(request.device)
        self._dtype = choose_dtype(request.dtype, self._device)
        motion_checkpoint = checkpoint.load(motion_module_path(request.motion_module))
        for name in request.bases:
            check_fit(motion_checkpoint, empty_unet(base_path(name)), request.frames)
            for prompt in request.prompts if is_miniature(name) else ():
                world.check_prompt(prompt)
        self._module = motion_checkpoint.build(dtype=self._dtype).to(self._device)
        self._name = ""
        self._base: BaseModel | None = None
        self._latent_spaces: dict[str, str] = {}

    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Return the clips' sizes; ValueError for one that is no multiple of a latent."""
        first = self.base(self.request.bases[0])
        side = first.default_size
        sizes = self.request.sizes or ((side, side),)
        for width, height in sizes:
            check_size(width, height, first.latent_factor)
        return sizes

    def base(self, name: str) -> BaseModel:
        """Return a base model, loaded in place of the one before."""
        if self._base is not None and name == self._name:
            return self._base
        self._base = None  # before the next takes its memory
        base = load_base(
            base_path(name),
            **self.request.reading(),
            device=self._device,
            dtype=self._dtype,
        )
        self._name, self._base = name, base
        self._warn_of_latents(name, base)
        return base

    def _warn_of_latents(self, name: str, base: BaseModel) -> None:
        if name in self._latent_spaces:  # it was here before
            return
        space = self._latent_spaces[name] = base.latent_space()
        first, its_space = next(iter(self._latent_spaces.items()))
        if space != its_space:
            logger.warning(
                "the VAE of %s encodes differently from that of %s; use one --out and one pool "
                "for each, because a student cannot learn from mixed latents.",
                name,
                first,
            )

    def make(self, clips: Sequence[PlannedClip]) -> Iterator[dict[str, np.ndarray]]:
        """Yield each clip's arrays by their names in a shard; all clips are of one base model."""
        base = self.base(clips[0].base)
        prompts, seeds = [c.prompt for c in clips], [c.seed for c in clips]
        latents = generate_latents(base, self._module, prompts, seeds, clips[0].settings)
        for clip, x0 in zip(clips, latents, strict=True):
            arrays = {latent_shards.LATENTS: x0}
            if self.request.flip:
                arrays[latent_shards.FLIPPED] = mirror_latents(base, x0)
            yield {name: _half(clip, x) for name, x in arrays.items()}


def mirror_latents(base: BaseModel, x0: Tensor) -> Tensor:
    """Return the latents (frames, c, h, w) of the mirrored frames: decode, flip, encode.

    A VAE does not commute with mirroring, so mirrored latents would be those of other frames.
    """
    return encode_images(base, decode_images(base, x0).flip(-1))


def _make_shard(studio: Studio, shard: ShardPlan, bar: tqdm) -> None:
    """Make the clips of a shard that are missing, one file each, and then the shard of them."""
    request = studio.request
    clips = [plan_clip(request, n, shard.size) for n in shard.clips]
    work = _work_folder(request, shard)
    for together in _batches(clips, request.at_once):
        if not all(_file(work, c).is_file() for c in together):
            # in the same company as before, or rounding would differ
            for clip, arrays in zip(together, studio.make(together), strict=True):
                with atomic_path(_file(work, clip)) as temporary:
                    # numpy's types would have the arrays' names be options, too
                    np.savez(temporary, **arrays)  # type: ignore[arg-type]
        bar.update(len(together))
    members = itertools.chain.from_iterable(_members(request, work, c) for c in clips)
    latent_shards.write_tar(work / shard.name, members)
    os.replace(work / shard.name, request.out / shard.name)
    shutil.rmtree(work)


def _batches(clips: Sequence[PlannedClip], size: int) -> Iterator[list[PlannedClip]]:
    """Yield clips of one base model, at most `size` at once; the same ones on every run."""
    for _, group in itertools.groupby(clips, key=lambda c: c.base):
        mine = list(group)
        yield from (mine[i : i + size] for i in range(0, len(mine), size))


def _members(request: DataRequest, work: Path, clip: PlannedClip) -> Iterator[tuple[str, bytes]]:
    file = _file(work, clip)
    with (
        one_sentence(str(file), "delete it, and the same command makes it again"),
        np.load(file) as kept,
    ):
        arrays = {name: kept[name] for name in kept.files}
    for name, array in arrays.items():
        yield f"{clip.key}.{name}", latent_shards.encode_npy(array)
    yield f"{clip.key}.{latent_shards.CAPTION}", clip.prompt.encode()
    settings = clip.settings
    metadata = {
        "base": clip.base,
        "motion_module": request.motion_module,
        "prompt": clip.prompt,
        "seed": clip.seed,
        "frames": settings.frames,
        "width": settings.width,
        "height": settings.height,
        "steps": settings.steps,
        "cfg": settings.cfg,
        "sampler": settings.sampler,
    }
    yield f"{clip.key}.json", json.dumps(metadata).encode()


def _half(clip: PlannedClip, latents: Tensor) -> np.ndarray:
    half = latents.half().cpu()
    if not half.isfinite().all():
        raise ValueError(
            f"the clip of {clip.prompt!r} by {clip.base} has values that are not finite; use "
            "--dtype bfloat16 or float32."
        )
    return half.numpy()


def _work_folder(request: DataRequest, shard: ShardPlan) -> Path:
    return request.out / f".{Path(shard.name).stem}"


def _file(work: Path, clip: PlannedClip) -> Path:
    return work / f"{clip.key}.npz"
