"""`data import`: captioned videos, such as WebVid's, as latent shards.

AnimateDiff-Lightning section 3.3 distils SD1.5 itself on WebVid-10M. Worker processes decode,
torchrun's processes share the shards out by number; a run that was killed goes on.
"""

import contextlib
import csv
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ...motion_module.files import atomic_path, remove_half_written
from ...video.container import UnusableVideoError
from ...video.reader import ClipShape
from ..engine import distributed
from ..files import claim, records
from ..library_errors import one_sentence
from ..miniature.names import base_path
from ..models.base_model import BaseModel, load_base, quiet_libraries
from ..models.devices import my_device
from ..models.latents import encode_images, to_images
from . import latent_shards, video_folder, walk
from .import_request import RECORD, ImportRequest
from .import_worker import Readers, Task
from .video_folder import Captions

BAD = "bad.csv"
_DONE = "done"  # folder of what became of each shard's videos


def import_videos(
    request: ImportRequest, rank: int | None = None, world_size: int | None = None
) -> str:
    """Make this process's shards and return a sentence on what became of the videos.

    Raises ValueError, before any video is decoded, where there are none or the folder holds
    another command's clips.
    """
    quiet_libraries()
    rank, world_size = distributed.share(rank, world_size)
    names, left_out = walk.find_videos(request.videos, request.table, request.out)
    if not names:
        raise ValueError(f"{walk.explain_no_videos(request.videos, left_out)}.")
    captions = video_folder.read_captions(request.videos, request.table)
    base = load_base(
        base_path(request.base), tokenizer=request.tokenizer, device=my_device(request.device)
    )
    shape = _clip_shape(request, base)
    _claim_folder(request, names)
    shards = [names[i : i + request.shard_size] for i in range(0, len(names), request.shard_size)]
    with contextlib.closing(Readers(request.workers)) as readers:
        for number in range(rank, len(shards), world_size):
            tasks = [
                _task(request, captions, shape, number * request.shard_size + i, name)
                for i, name in enumerate(shards[number])
            ]
            if not _is_done(request, number, tasks):
                _make_shard(request, base, readers, number, shards[number], tasks)
    return _report(request, len(names), left_out, len(shards))


def _clip_shape(request: ImportRequest, base: BaseModel) -> ClipShape:
    """Return what clips are cut to; ValueError for a size that is no multiple of a latent."""
    size = request.clip_size.sized(base.default_size, base.latent_factor)
    return ClipShape(size.frames, request.fps, *size.pixels)


def _claim_folder(request: ImportRequest, names: Sequence[str]) -> None:
    """Write down what is imported, or refuse the folder of something else with ValueError."""
    record = asdict(request)
    for option in ("out", "workers", "device", "tokenizer", "table"):
        del record[option]
    record |= {"videos": str(request.videos), "files": video_folder.digest_videos(names, names)}
    claim.claim_shards(request.out / RECORD, record, "an import")


def _task(
    request: ImportRequest, captions: Captions, shape: ClipShape, number: int, name: str
) -> Task:
    where = float(np.random.default_rng((request.seed, number)).random())
    file = request.videos / name
    try:
        caption = captions.of(file, name)
    except UnusableVideoError:
        caption = ""
    return Task(file, caption, shape, where, name)


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
        clips = zip(names, tasks, readers.in_order(tasks), strict=True)
        for index, (name, task, result) in enumerate(clips):
            for sentence in result.warnings:
                video_folder.warn_once(sentence)
            clip = result.clip
            if isinstance(clip, str):  # why there is none
                bad[name] = clip
                continue
            key = f"{number * request.shard_size + index:08d}"
            arrays = {latent_shards.LATENTS: clip}
            if request.flip:
                arrays[latent_shards.FLIPPED] = clip[:, :, ::-1]
            for member, frames in arrays.items():
                images = to_images(np.ascontiguousarray(frames))
                latents = encode_images(base, images).half().cpu().numpy()
                yield f"{key}.{member}", latent_shards.encode_npy(latents)
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
    record = {"clips": len(names) - len(bad), "captions": _digest(tasks), "bad": bad}
    with atomic_path(_record_file(request, number)) as temporary:
        temporary.write_text(json.dumps(record))


def _report(request: ImportRequest, videos: int, left_out: dict[str, str], shards: int) -> str:
    """Bring the list of what is left out up to date and return a sentence.

    Raises ValueError where no video could be used.
    """
    files = sorted((request.out / _DONE).glob("[!.]*.json"))
    done = [_read_record(file) for file in files]
    bad = {name: str(reason) for record in done for name, reason in record["bad"].items()}
    clips = sum(record["clips"] for record in done)
    _write_table(request.out / BAD, left_out | bad)
    if len(done) == shards and not clips:
        raise ValueError(video_folder.explain_none_usable(request.videos, bad))
    if len(done) == shards:  # the last process
        latent_shards.open_shards(str(request.out))  # brings index.json up to date
    skipped = f" {video_folder.list_skipped(left_out | bad)}" if left_out or bad else ""
    return f"{request.out} now holds {clips} clips from {videos} videos.{skipped}"


def _write_table(file: Path, bad: dict[str, str]) -> None:
    """Write which files are left out and why; nothing where there are none."""
    if not bad:
        file.unlink(missing_ok=True)
        return
    with (
        atomic_path(file) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as target,
    ):
        writer = csv.writer(target, lineterminator="\n")
        writer.writerow(("file_name", "reason"))
        writer.writerows(sorted(bad.items()))


def _is_done(request: ImportRequest, number: int, tasks: Sequence[Task]) -> bool:
    """Tell whether a shard is made, with the captions that its videos have now."""
    file = _record_file(request, number)
    return file.is_file() and _read_record(file).get("captions") == _digest(tasks)


def _read_record(file: Path) -> dict:
    with one_sentence(str(file), "delete it, and the same command makes its shard again"):
        record = records.read(file, dict)
        if not isinstance(record.get("clips"), int) or not isinstance(record.get("bad"), dict):
            raise ValueError("it does not say what became of the videos")
        return record


def _digest(tasks: Sequence[Task]) -> str:
    return video_folder.digest_videos([t.file.name for t in tasks], [t.caption for t in tasks])


def _record_file(request: ImportRequest, number: int) -> Path:
    return request.out / _DONE / f"{number:06d}.json"
