"""`data generate`: clips of (base model, prompt) pairs, sampled by the teacher, as latent shards.

AnimateDiff-Lightning section 3.3: DPM-Solver++ 32 steps, cfg 7.5. Processes share the shards out by
number and never talk; a run that was killed goes on with the clips that it has.
"""

import itertools
import json
import os
import shutil
import sys
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
from ..miniature import world
from ..miniature.names import base_path, is_miniature, motion_module_path
from ..models.base_model import BaseModel, load_base, quiet_libraries
from ..models.devices import choose_dtype, my_device
from ..models.headers import check_fit, empty_unet
from ..sampling.sample import generate_clips
from . import latent_shards
from .generate_request import Clip, DataRequest, ShardPlan, clip_of, plan

RECORD = "generate.json"
_CODED_AT_ONCE = 2  # frames that the VAE takes


def run(request: DataRequest, rank: int | None = None, world_size: int | None = None) -> list[Path]:
    """Make this process's shards, those numbered rank modulo world_size, and return the files.

    Rank and world size are torchrun's by default. Raises ValueError, before any clip is made, for
    models that are missing or unfit, and where the folder holds another command's clips.
    """
    quiet_libraries()
    rank, world_size = distributed.share(rank, world_size)
    studio = Studio(request)
    sizes = studio.sizes()
    claim.claim_shards(request.out / RECORD, request.fingerprint(), "clips")
    parts = plan(request, sizes)
    mine = parts[rank::world_size]
    left = [p for p in mine if not (request.out / p.name).is_file()]
    with tqdm(total=sum(len(p.clips) for p in left), unit="clip", disable=None) as bar:
        for part in left:
            _make_shard(studio, part, bar)
    for part in mine:  # a kill between the two last acts of a shard leaves its folder
        shutil.rmtree(_work(request, part), ignore_errors=True)
    if all((request.out / part.name).is_file() for part in parts):  # the last process
        latent_shards.open_shards(str(request.out))  # brings index.json up to date
    return [request.out / p.name for p in mine]


def miniature_captions(count: int, seed: int) -> tuple[str, ...]:
    """Return captions of the combinations that the miniature was trained on, none held out."""
    if count < 1:
        raise ValueError(f"--miniature-captions must be at least 1, not {count}.")
    return tuple(world.draw(count, torch.Generator().manual_seed(seed)).captions())


class Studio:
    """The models that make clips; one base model at a time is in memory."""

    def __init__(self, request: DataRequest) -> None:
        self.request = request
        self._device = my_device(request.device)
        self._dtype = choose_dtype(request.dtype, self._device)
        known = checkpoint.load(motion_module_path(request.motion_module))
        for name in request.bases:
            check_fit(known, empty_unet(base_path(name)), request.frames)
            for prompt in request.prompts if is_miniature(name) else ():
                world.check_prompt(prompt)
        self._module = known.build(dtype=self._dtype).to(self._device)
        self._name, self._base = "", None
        self._latent_spaces: dict[str, str] = {}

    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Return the wanted sizes; ValueError for one that is no multiple of a latent."""
        first = self.base(self.request.bases[0])
        side = first.default_size
        sizes = self.request.sizes or ((side, side),)
        for width, height in sizes:
            wanted = self.request.clip(self.request.prompts[:1], 0, width, height)
            wanted.sized(side, side, first.latent_factor)
        return sizes

    def base(self, name: str) -> BaseModel:
        """Return a base model, loaded in place of the one before."""
        if name != self._name:
            self._base = None  # before the next takes its memory
            self._base = load_base(
                base_path(name),
                config=self.request.config,
                tokenizer=self.request.tokenizer,
                prediction_type=self.request.prediction_type,
                device=self._device,
                dtype=self._dtype,
            )
            self._name = name
            self._warn_of_latents(name, self._base)
        return self._base

    def _warn_of_latents(self, name: str, base: BaseModel) -> None:
        if name in self._latent_spaces:  # it was here before
            return
        space = self._latent_spaces[name] = base.latent_space()
        first, its_space = next(iter(self._latent_spaces.items()))
        if space != its_space:
            tqdm.write(  # above the progress bar
                f"warning: the VAE of {name} encodes otherwise than that of {first}; give them an "
                "--out and a pool each, for mixed latents teach neither.",
                file=sys.stderr,
            )

    def make(self, clips: Sequence[Clip]) -> Iterator[dict[str, np.ndarray]]:
        """Yield each clip's arrays by their names in a shard; all clips are of one base model."""
        base = self.base(clips[0].base)
        prompts, seeds = [c.prompt for c in clips], [c.request.seed for c in clips]
        found = generate_clips(base, self._module, prompts, seeds, clips[0].request)
        for clip, x0 in zip(clips, found, strict=True):
            arrays = {latent_shards.LATENTS: x0}
            if self.request.flip:
                arrays[latent_shards.FLIPPED] = mirrored(base, x0)
            yield {name: _half(clip, x) for name, x in arrays.items()}


@torch.inference_mode()
def mirrored(base: BaseModel, x0: Tensor) -> Tensor:
    """Return the latents (frames, c, h, w) of the mirrored frames: decode, flip, encode.

    A VAE does not commute with mirroring, so mirrored latents would be those of other frames.
    """
    parts = []
    for z in x0.split(_CODED_AT_ONCE):
        image = base.vae.decode(base.unscaled(z).to(base.vae.dtype)).sample.float().flip(-1)
        found = base.vae.encode(image.to(base.vae.dtype)).latent_dist.mode()
        parts.append(base.scaled(found.float()))
    return torch.cat(parts)


def _make_shard(studio: Studio, part: ShardPlan, bar: tqdm) -> None:
    """Make the clips of a shard that are missing, one file each, and then the shard of them."""
    request = studio.request
    clips = [clip_of(request, n, part.size) for n in part.clips]
    work = _work(request, part)
    for together in _batches(clips, request.at_once):
        if not all(_file(work, c).is_file() for c in together):
            # in the same company as before, or rounding would differ
            for clip, arrays in zip(together, studio.make(together), strict=True):
                with atomic_path(_file(work, clip)) as temporary:
                    np.savez(temporary, **arrays)
        bar.update(len(together))
    members = itertools.chain.from_iterable(_members(request, work, c) for c in clips)
    latent_shards.write_tar(work / part.name, members)
    os.replace(work / part.name, request.out / part.name)
    shutil.rmtree(work)


def _batches(clips: Sequence[Clip], size: int) -> Iterator[list[Clip]]:
    """Yield clips of one base model, at most `size` at once; the same ones on every run."""
    for _, group in itertools.groupby(clips, key=lambda c: c.base):
        mine = list(group)
        yield from (mine[i : i + size] for i in range(0, len(mine), size))


def _members(request: DataRequest, work: Path, clip: Clip) -> Iterator[tuple[str, bytes]]:
    with np.load(_file(work, clip)) as arrays:
        for name in arrays.files:
            yield f"{clip.key}.{name}", latent_shards.npy(arrays[name])
    yield f"{clip.key}.{latent_shards.CAPTION}", clip.prompt.encode()
    asked = clip.request
    told = {
        "base": clip.base,
        "motion_module": request.motion_module,
        "prompt": clip.prompt,
        "seed": asked.seed,
        "frames": asked.frames,
        "width": asked.width,
        "height": asked.height,
        "steps": asked.steps,
        "cfg": asked.cfg,
        "sampler": asked.sampler,
    }
    yield f"{clip.key}.json", json.dumps(told).encode()


def _half(clip: Clip, latents: Tensor) -> np.ndarray:
    half = latents.half().cpu()
    if not half.isfinite().all():
        raise ValueError(
            f"the clip of {clip.prompt!r} by {clip.base} has values that are no numbers; use "
            "--dtype bfloat16 or float32."
        )
    return half.numpy()


def _work(request: DataRequest, part: ShardPlan) -> Path:
    return request.out / f".{Path(part.name).stem}"


def _file(work: Path, clip: Clip) -> Path:
    return work / f"{clip.key}.npz"
