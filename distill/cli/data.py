"""The commands `data generate`, `data import`, `data verify` and `data stats`."""

from pathlib import Path
from typing import Annotated

import typer

from ..data.generate_request import DataRequest
from ..data.import_request import ImportRequest
from .options import (
    BASE_METAVAR,
    AtOnce,
    Bases,
    ComputeDtype,
    Configs,
    Dtype,
    FlipClips,
    Frames,
    MyDevice,
    Prediction,
    PredictionType,
    Sampler,
    Teacher,
    Tokenizer,
    parse_size,
)

SHARDS = "Folder of shards, a .tar file, a pattern such as 'clips-{000000..000007}.tar', or a URL."

data = typer.Typer(help="The clips that a distillation learns from.")


@data.command("generate")
def generate_clips(
    base: Bases,
    motion_module: Teacher,
    out: Annotated[Path, typer.Option(help="Folder of the shards; the same one goes on.")],
    prompts: Annotated[Path | None, typer.Option(help="Text file, one prompt a line.")] = None,
    miniature_captions: Annotated[
        int | None,
        typer.Option(metavar="N", help="In place of --prompts: N captions of the miniature."),
    ] = None,
    clips_per_prompt: Annotated[int, typer.Option(help="By each base model.")] = (
        DataRequest.clips_per_prompt
    ),
    frames: Frames = DataRequest.frames,
    size: Annotated[
        list[str] | None,
        typer.Option(metavar="WxH", help="Pixels; repeat to deal out. Default: the base's own."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Of the sampler.")] = DataRequest.steps,
    cfg: Annotated[float, typer.Option(help="Guidance; 1 is none.")] = DataRequest.cfg,
    sampler: Annotated[Sampler, typer.Option(help="dpmpp is DPM-Solver++.")] = Sampler[
        DataRequest.sampler
    ],
    seed: Annotated[int, typer.Option(help="Each clip has a seed of its own from it.")] = (
        DataRequest.seed
    ),
    flip: FlipClips = DataRequest.flip,
    shard_size: Annotated[int, typer.Option(help="Clips a shard.")] = DataRequest.shard_size,
    at_once: AtOnce = DataRequest.at_once,
    device: MyDevice = DataRequest.device,
    dtype: ComputeDtype = Dtype[DataRequest.dtype],
    tokenizer: Tokenizer = DataRequest.tokenizer,
    config: Configs = DataRequest.config,
    prediction_type: Prediction = PredictionType.auto,
) -> None:
    """Make a clip of every prompt by every base model, as webdataset shards of latents.

    Stop it at any time: the same command goes on. Under torchrun processes share the shards out.
    """
    request = DataRequest(
        bases=tuple(base),
        motion_module=motion_module,
        prompts=_read_prompts(prompts, miniature_captions, seed),
        out=out,
        clips_per_prompt=clips_per_prompt,
        frames=frames,
        sizes=tuple(parse_size(s) for s in size or ()),
        steps=steps,
        cfg=cfg,
        sampler=sampler.value,
        seed=seed,
        flip=flip,
        shard_size=shard_size,
        at_once=at_once,
        device=device,
        dtype=dtype.value,
        tokenizer=tokenizer,
        config=config,
        prediction_type=prediction_type.or_none,
    )

    from ..data import generate

    files = generate.run(request)
    count = f"{len(files)} shard{'s' * (len(files) != 1)}"
    print(f"wrote {count} to {out}; the shards of all processes hold {len(request)} clips.")


@data.command("import")
def import_clips(
    videos: Annotated[Path, typer.Argument(help="Folder of videos, searched to its depths.")],
    base: Annotated[
        str,
        typer.Option(metavar=BASE_METAVAR, help="Base model whose VAE encodes."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the shards; the same one goes on.")],
    table: Annotated[
        Path | None,
        typer.Option(
            help="CSV of captions: file_name and text, or WebVid's own. Default: captions.csv in "
            "the folder, or NAME.txt beside NAME.mp4."
        ),
    ] = ImportRequest.table,
    frames: Frames = ImportRequest.frames,
    fps: Annotated[float, typer.Option(help="Frames a second of a clip.")] = ImportRequest.fps,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Pixels. Default: the base's own.")
    ] = None,
    flip: FlipClips = ImportRequest.flip,
    shard_size: Annotated[int, typer.Option(help="Videos a shard.")] = ImportRequest.shard_size,
    seed: Annotated[int, typer.Option(help="Where in each video its clip begins.")] = (
        ImportRequest.seed
    ),
    workers: Annotated[int, typer.Option(help="Processes that decode.")] = ImportRequest.workers,
    device: MyDevice = ImportRequest.device,
    tokenizer: Tokenizer = ImportRequest.tokenizer,
) -> None:
    """Cut a clip from each captioned video, as webdataset shards of latents.

    Videos that cannot be used are counted, and listed in bad.csv. Stop it at any time: the same
    command goes on. Under torchrun processes share the shards out.
    """
    request = ImportRequest(
        videos=videos,
        base=base,
        out=out,
        table=table,
        frames=frames,
        fps=fps,
        size=None if size is None else parse_size(size),
        flip=flip,
        shard_size=shard_size,
        seed=seed,
        workers=workers,
        device=device,
        tokenizer=tokenizer,
    )

    from ..data import import_videos

    print(import_videos.run(request))


@data.command("verify")
def verify_shards(shards: Annotated[str, typer.Argument(help=SHARDS)]) -> None:
    """Read every clip, and name those that cannot be trained on."""
    from ..data import verify

    print(verify.verify_shards(shards))


@data.command("stats")
def describe_shards(
    shards: Annotated[str, typer.Argument(help=SHARDS)],
    base: Annotated[
        str | None, typer.Option(help="Base model whose VAE draws a contact sheet of some clips.")
    ] = None,
) -> None:
    """Say how many clips of which shapes there are, and show some."""
    from ..data import verify

    print(verify.describe_shards(shards, base))


def _read_prompts(file: Path | None, captions: int | None, seed: int) -> tuple[str, ...]:
    if (file is None) == (captions is None):
        raise ValueError("give either --prompts or --miniature-captions.")
    if file is not None:
        from ..sampling.request import read_prompts

        return read_prompts(file)
    from ..data.generate import draw_captions

    return draw_captions(captions, seed)
