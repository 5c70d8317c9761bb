"""`data import`: captioned videos, such as WebVid's, as latent shards.

AnimateDiff-Lightning section 3.3 distils SD1.5 itself on WebVid-10M. Worker processes decode,
torchrun's processes share the shards out by number; a run that was killed goes on.
"""

import contextlib
import csv
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...motion_module.files import atomic_path, remove_half_written
from ...video.reader import VIDEO_EXTENSIONS, ClipShape, UnusableVideoError
from ..engine import distributed
from ..files import claim as folder_record
from ..miniature.names import base_path
from ..models.base_model import BaseModel, load_base, quiet_libraries
from ..models.devices import my_device
from ..sampling.request import ClipRequest
from . import latent_shards, video_folder
from .import_worker import Readers, Task
from .video_folder import Captions

RECORD, BAD = "import.json", "bad.csv"
_DONE = "done"  # folder of what became of each shard's videos
_ENCODED_AT_ONCE = 2  # frames that the VAE takes


@dataclass(frozen=True)
class ImportRequest:
    """The videos and what becomes of them; holds the defaults of `data import`.

    table: CSV of captions, None: one in the folder, or NAME.txt beside NAME.mp4; base: whose VAE
    encodes; size: (width, height) in pixels, None: the base's own; workers: decoding processes.
    """

    videos: Path
    base: str
    out: Path
    table: Path | None = None
    frames: int = 16
    fps: float = 8.0
    size: tuple[int, int] | None = None
    flip: bool = True
    shard_size: int = 64
    seed: int = 0
    workers: int = 4
    device: str = "auto"
    tokenizer: Path | None = None

    def __post_init__(self) -> None:
        for name in ("shard_size", "workers"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} must be at least 1, not {getattr(self, name)}.")
        width, height = self.size or (None, None)
        self.clip(width, height)  # raises for what is impossible
        if not self.videos.is_dir():
            raise ValueError(f"the folder of videos {self.videos} was not found.")

    def clip(self, width: int | None, height: int | None) -> ClipRequest:
        return ClipRequest(
            ("any",),
            frames=self.frames,
            fps=self.fps,
            width=width,
            height=height,
            seed=self.seed,
            out=self.out / "clip.mp4",
        )

    def shape(self, base: BaseModel) -> ClipShape:
        """Return what clips are cut to; ValueError for a size that is no multiple of a latent."""
        side = base.default_size
        asked = self.clip(*(self.size or (None, None))).sized(side, side, base.latent_factor)
        return ClipShape(self.frames, self.fps, asked.width, asked.height)


def run(request: ImportRequest, rank: int | None = None, world_size: int | None = None) -> str:
    """Make this process's shards and return a sentence on what became of the videos.

    Raises ValueError, before any video is decoded, where there are none or the folder holds
    another command's clips.
    """
    quiet_libraries()
    rank, world_size = distributed.share(rank, world_size)
    names = find(request)
    captions = video_folder.read_captions(request.videos, request.table)
    base = load_base(
        base_path(request.base), tokenizer=request.tokenizer, device=my_device(request.device)
    )
    shape = request.shape(base)
    claim(request, names)
    shards = [names[i : i + request.shard_size] for i in range(0, len(names), request.shard_size)]
    with contextlib.closing(Readers(request.workers)) as readers:
        for number in range(rank, len(shards), world_size):
            tasks = [
                _task(request, captions, shape, number * request.shard_size + i, name)
                for i, name in enumerate(shards[number])
            ]
            if not _is_done(request, number, tasks):
                _make_shard(request, base, readers, number, shards[number], tasks)
    return _report(request, len(names), len(shards))


def find(request: ImportRequest) -> list[str]:
    """Return the videos' names under their folder, sorted; ValueError where there are none."""
    found = sorted(
        f.relative_to(request.videos).as_posix()
        for f in request.videos.rglob("*")
        if f.suffix.lower() in VIDEO_EXTENSIONS
    )
    if not found:
        raise ValueError(
            f"{request.videos} holds no videos; give a folder with "
            f"{', '.join(VIDEO_EXTENSIONS[:4])} ... files."
        )
    return found


def claim(request: ImportRequest, names: Sequence[str]) -> None:
    """Write down what is imported, or refuse the folder of something else with ValueError."""
    told = asdict(request)
    for option in ("out", "workers", "device", "tokenizer", "table"):
        del told[option]
    told |= {"videos": str(request.videos), "files": video_folder.digest(names, names)}
    folder_record.claim_shards(request.out / RECORD, told, "an import")


@torch.inference_mode()
def encode(base: BaseModel, frames: np.ndarray) -> Tensor:
    """Return the latents (frames, channels, h, w), float32, of uint8 frames (frames, h, w, 3)."""
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).to(base.device) / 127.5 - 1
    parts = (base.vae.encode(p.to(base.dtype)) for p in images.split(_ENCODED_AT_ONCE))
    return base.scaled(torch.cat([p.latent_dist.mode().float() for p in parts]))


def _task(
    request: ImportRequest, captions: Captions, shape: ClipShape, number: int, name: str
) -> Task:
    where = float(np.random.default_rng((request.seed, number)).random())
    file = request.videos / name
    try:
        caption = captions.of(file, name)
    except UnusableVideoError:
        caption = ""
    return Task(file, caption, shape, where)


def _make_shard(
    request: ImportRequest,
    base: BaseModel,
    readers: Readers,
    number: int,
    names: Sequence[str],
    tasks: Sequence[Task],
) -> None:
    """Write a shard of the videos that can be read, and after it why the others cannot."""
    bad: dict[str, str] = {}

    def members() -> Iterator[tuple[str, bytes]]:
        for at, (name, task, found) in enumerate(
            zip(names, tasks, readers.in_order(tasks), strict=True)
        ):
            if isinstance(found, str):
                bad[name] = found
                continue
            key = f"{number * request.shard_size + at:08d}"
            arrays = {latent_shards.LATENTS: found}
            if request.flip:
                arrays[latent_shards.FLIPPED] = found[:, :, ::-1]
            for part, frames in arrays.items():
                latents = encode(base, np.ascontiguousarray(frames)).half().cpu().numpy()
                yield f"{key}.{part}", latent_shards.npy(latents)
            yield f"{key}.{latent_shards.CAPTION}", task.caption.encode()
            yield f"{key}.json", json.dumps({"video": name, "fps": request.fps}).encode()

    stream = members()
    first = next(stream, None)
    shard = request.out / f"clips-{number:06d}.tar"
    remove_half_written(shard)
    if first is not None:
        with atomic_path(shard) as temporary:
            latent_shards.write_tar(temporary, itertools.chain([first], stream))
    else:
        shard.unlink(missing_ok=True)  # of captions that are gone
    told = {"clips": len(names) - len(bad), "captions": _digest(tasks), "bad": bad}
    with atomic_path(_done(request, number)) as temporary:
        temporary.write_text(json.dumps(told))


def _report(request: ImportRequest, videos: int, shards: int) -> str:
    """Bring the list of bad videos up to date and return a sentence; ValueError if all are bad."""
    told = [json.loads(f.read_text()) for f in sorted((request.out / _DONE).glob("[!.]*.json"))]
    bad = {name: reason for one in told for name, reason in one["bad"].items()}
    clips = sum(one["clips"] for one in told)
    if not bad:
        (request.out / BAD).unlink(missing_ok=True)
    else:
        with (
            atomic_path(request.out / BAD) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as target,
        ):
            writer = csv.writer(target, lineterminator="\n")
            writer.writerow(("file_name", "reason"))
            writer.writerows(sorted(bad.items()))
    if len(told) == shards and not clips:
        raise ValueError(video_folder.none_usable(request.videos, bad))
    if len(told) == shards:  # the last process
        latent_shards.open_shards(str(request.out))  # brings index.json up to date
    skipped = f" {video_folder.listing(bad)}" if bad else ""
    return f"{clips} of {videos} videos are clips in {request.out} now.{skipped}"


def _is_done(request: ImportRequest, number: int, tasks: Sequence[Task]) -> bool:
    """Tell whether a shard is made, with the captions that its videos have now."""
    file = _done(request, number)
    return file.is_file() and json.loads(file.read_text()).get("captions") == _digest(tasks)


def _digest(tasks: Sequence[Task]) -> str:
    return video_folder.digest([t.file.name for t in tasks], [t.caption for t in tasks])


def _done(request: ImportRequest, number: int) -> Path:
    return request.out / _DONE / f"{number:06d}.json"
