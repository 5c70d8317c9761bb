"""`data verify` and `data stats`: whether every clip can be trained on, and what there is."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..files import claim, clip_writer
from ..miniature.names import base_path
from ..models.base_model import load_base, quiet_libraries
from ..models.latents import decode_frames
from . import latent_shards
from .generate_request import RECORD
from .latent_pool import name_of
from .latent_shards import Shape, Shard

SHEET = "clips.png"
_SHEET_ROWS, _SHEET_FRAMES = 8, 8
_SMALLEST_SIDE = 64  # pixels of a frame in the contact sheet
_NAMED_FAULTS = 20  # bad clips, beyond which only the number is told


def verify_shards(shards: str | Path) -> str:
    """Read every clip of some shards and return a sentence; ValueError names all that is bad.

    `shards` is what open_shards takes; a folder's own records are checked, too.
    """
    sources = latent_shards.find_shards(str(shards))
    if not sources:
        raise ValueError(f"{shards} holds no shards of clips; `data generate` makes them.")
    bad: list[str] = []
    counts: dict[str, int] = {}
    for source in tqdm(sources, desc="reading the shards", disable=None, leave=False):
        try:
            shard = latent_shards.index_shard(source)
        except ValueError as error:
            bad.append(str(error).rstrip("."))
            continue
        counts[shard.name] = len(shard)
        bad.extend(_bad_clips(shard))
    if Path(shards).is_dir():
        bad.extend(_against_records(Path(shards), sources, counts))
    if bad:
        more = [f"and {len(bad) - _NAMED_FAULTS} more"] if len(bad) > _NAMED_FAULTS else []
        raise ValueError(
            f"{shards} has {len(bad)} problem{'s' * (len(bad) > 1)}: "
            f"{'; '.join([*bad[:_NAMED_FAULTS], *more])}."
        )
    return f"all {sum(counts.values())} clips can be used (shards: {len(sources)})."


def describe_shards(where: str | Path, base: str | None = None) -> str:
    """Return what some shards hold, a line each; `where` is what open_shards takes.

    A base model also draws a contact sheet into the folder; ValueError where it is none.
    """
    if base is not None and not Path(where).is_dir():
        raise ValueError(
            f"a contact sheet is written into the folder of the shards, but {where} is not a "
            "folder; give a folder, or leave out --base."
        )
    shards = latent_shards.open_shards(str(where))
    shapes: Counter[Shape] = Counter()
    captions: Counter[str] = Counter()
    for shard in shards:
        shapes[shard.shape] += len(shard)
        captions.update(shard.caption(clip) for clip in range(len(shard)))
    flipped = "yes" if all(s.can_flip for s in shards) else "not all"
    lines = [
        f"clips     {sum(shapes.values())}",
        f"shards    {len(shards)}",
        *(f"shape     {name_of(s)}: {n}" for s, n in sorted(shapes.items())),
        f"flipped   {flipped}",
        f"captions  {len(captions)} different",
        f"size      {sum(s.size for s in shards) / 2**30:.3f} GiB",
    ]
    if base is not None:
        lines.append(f"sheet     {draw_sheet(Path(where), shards, base)}")
    return "\n".join(lines)


def draw_sheet(folder: Path, shards: list[Shard], base: str) -> Path:
    """Write a picture of a few clips of the first shard's shape, a row of frames each."""
    quiet_libraries()
    model = load_base(base_path(base))
    alike = [s for s in shards if s.shape == shards[0].shape]
    places = [(s, c) for s in alike for c in range(len(s))]
    clips = []
    for shard, clip in places[:: max(1, len(places) // _SHEET_ROWS)][:_SHEET_ROWS]:
        latents = torch.from_numpy(shard.read(clip, flip=False)[0]).float()
        shown = latents[:: max(1, len(latents) // _SHEET_FRAMES)]
        clips.append(clip_writer.enlarge(decode_frames(model, shown).numpy(), _SMALLEST_SIDE))
    sheet = clip_writer.rows(clips, _SHEET_FRAMES)[None]
    return clip_writer.write_clip(folder / SHEET, sheet, fps=1)


def _bad_clips(shard: Shard) -> Iterator[str]:
    keys = latent_shards.read_keys(shard.source)
    flips = np.flatnonzero(shard.places[:, 2] >= 0).tolist()
    for clip, flip in [*((c, False) for c in range(len(shard))), *((c, True) for c in flips)]:
        where = f"{shard.name}/{keys[clip]}{' flipped' * flip}"
        try:
            latents, caption = shard.read(clip, flip)
        except ValueError:
            yield f"{where} cannot be read"
            continue
        if not np.isfinite(latents).all():
            yield f"{where} has values that are not finite"
        if not caption.strip() and not flip:
            yield f"{where} has no caption"


def _against_records(folder: Path, sources: list[str], counts: dict[str, int]) -> Iterator[str]:
    """Yield what the index and the command that made the clips tell otherwise."""
    index = latent_shards.read_index(folder)
    gone = sorted(set(index) - {Path(s).name for s in sources})
    yield from (f"{name} is listed in {latent_shards.INDEX}, but is missing" for name in gone)
    for name, count in counts.items():
        indexed = len(index.get(name, range(count)))  # it may not know a shard yet
        if indexed != count:
            yield f"{latent_shards.INDEX} lists {indexed} clips for {name}, but it has {count}"
    if (folder / RECORD).is_file():
        yield from _against_command(folder / RECORD, sum(counts.values()))


def _against_command(record: Path, clips: int) -> Iterator[str]:
    try:
        expected = claim.read_record(record).get("clips")
    except ValueError as error:
        yield str(error).rstrip(".")
        return
    if not isinstance(expected, int):
        yield f"{record.name} does not say how many clips were requested, restore the original file"
    elif expected != clips:
        yield f"{clips} of {expected} clips are finished, run the same `data generate` again"
