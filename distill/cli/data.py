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
    ShardsFolder,
    Size,
    Teacher,
    Tokenizer,
    parse_size,
)

SHARDS = "Folder of shards, a .tar file, a pattern such as 'clips-{000000..000007}.tar', or a URL."

data = typer.Typer(help="Make, import and check the clips that a distillation learns from.")


@data.command("generate")
def generate_clips(
    base: Bases,
    motion_module: Teacher,
    out: ShardsFolder,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file with one prompt in each line.")
    ] = None,
    miniature_captions: Annotated[
        int | None,
        typer.Option(metavar="N", help="In place of --prompts: N captions of the miniature."),
    ] = None,
    clips_per_prompt: Annotated[
        int, typer.Option(help="Clips of each prompt, for each base model.")
    ] = DataRequest.clips_per_prompt,
    frames: Frames = DataRequest.frames,
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WxH",
            help="Width and height in pixels; repeat to use several sizes in turn. "
            "Default: the base model's own size.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = DataRequest.steps,
    cfg: Annotated[
        float, typer.Option(help="Guidance scale; 1 means no guidance.")
    ] = DataRequest.cfg,
    sampler: Annotated[Sampler, typer.Option(help="dpmpp is DPM-Solver++.")] = Sampler[
        DataRequest.sampler
    ],
    seed: Annotated[
        int, typer.Option(help="Base seed; the seed of each clip is derived from it.")
    ] = DataRequest.seed,
    flip: FlipClips = DataRequest.flip,
    shard_size: Annotated[int, typer.Option(help="Clips in each shard.")] = DataRequest.shard_size,
    at_once: AtOnce = DataRequest.at_once,
    device: MyDevice = DataRequest.device,
    dtype: ComputeDtype = Dtype[DataRequest.dtype],
    tokenizer: Tokenizer = DataRequest.tokenizer,
    config: Configs = DataRequest.config,
    prediction_type: Prediction = PredictionType.auto,
) -> None:
    """Sample a clip of every prompt with every base model, and store latents in webdataset shards.

    You may stop it at any time; the same command resumes it. Under torchrun, the processes share
    the work.
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

    files = generate.generate_clips(request)
    count = f"{len(files)} shard{'s' * (len(files) != 1)}"
    print(f"wrote {count} to {out}; the shards of all processes hold {len(request)} clips.")


@data.command("import")
def import_clips(
    videos: Annotated[Path, typer.Argument(help="Folder of videos; subfolders are searched, too.")],
    base: Annotated[
        str,
        typer.Option(metavar=BASE_METAVAR, help="Base model whose VAE encodes the videos."),
    ],
    out: ShardsFolder,
    table: Annotated[
        Path | None,
        typer.Option(
            help="CSV of captions: file_name and text, or WebVid's own. Default: captions.csv in "
            "the folder, or NAME.txt beside NAME.mp4."
        ),
    ] = ImportRequest.table,
    frames: Frames = ImportRequest.frames,
    fps: Annotated[float, typer.Option(help="Frames per second of the clips.")] = ImportRequest.fps,
    size: Size = None,
    flip: FlipClips = ImportRequest.flip,
    shard_size: Annotated[
        int, typer.Option(help="Videos in each shard.")
    ] = ImportRequest.shard_size,
    seed: Annotated[
        int, typer.Option(help="Seed for the place in each video where its clip begins.")
    ] = ImportRequest.seed,
    workers: Annotated[
        int, typer.Option(help="Number of processes that decode videos.")
    ] = ImportRequest.workers,
    device: MyDevice = ImportRequest.device,
    tokenizer: Tokenizer = ImportRequest.tokenizer,
) -> None:
    """Cut a clip from each captioned video, as webdataset shards of latents.

    Videos that cannot be used are counted, and listed in bad.csv. You may stop it at any time; the
    same command resumes it. Under torchrun, the processes share the work.
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

    print(import_videos.import_videos(request))


@data.command("verify")
def verify_shards(shards: Annotated[str, typer.Argument(help=SHARDS)]) -> None:
    """Read every clip, and list those that cannot be used for training."""
    from ..data import verify

    print(verify.verify_shards(shards))


@data.command("stats")
def describe_shards(
    shards: Annotated[str, typer.Argument(help=SHARDS)],
    base: Annotated[
        str | None,
        typer.Option(help="Draw a contact sheet of some clips with the VAE of this base model."),
    ] = None,
) -> None:
    """Count the clips by shape; with --base, also draw a contact sheet of some."""
    from ..data import verify

    print(verify.describe_shards(shards, base))


def _read_prompts(file: Path | None, captions: int | None, seed: int) -> tuple[str, ...]:
    if file is not None and captions is None:
        from ..sampling.request import read_prompts

        return read_prompts(file)
    if captions is not None and file is None:
        from ..data.generate import draw_captions

        return draw_captions(captions, seed)
    raise ValueError("give either --prompts or --miniature-captions.")
