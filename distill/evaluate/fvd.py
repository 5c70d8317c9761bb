"""`evaluate fvd`: how far each method's clips are from the teacher's, for each base model.

AnimateDiff-Lightning section 4.2, table 2: the same prompts and seeds everywhere, the reference is
the undistilled module at 32 Euler steps with guidance.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ...motion_module import checkpoint
from ...motion_module.checkpoint import MotionCheckpoint
from ...motion_module.files import atomic_path
from ...motion_module.module import MotionModule
from ..files import claim
from ..files.digest import digest
from ..library_errors import one_sentence
from ..miniature import world
from ..miniature.names import base_path, is_miniature, motion_module_path
from ..miniature.sample import show
from ..models.base_model import BaseModel, load_base, quiet_libraries
from ..models.devices import choose_device, choose_dtype
from ..models.headers import check_fit, empty_unet, latent_factor
from ..models.latent_size import check_size
from ..models.latents import decode_frames
from ..sampling.sample import generate_latents
from . import features, frechet
from .fvd_report import SHOWN_FRAMES, TABLE, Row, draw_comparison, plot_distances, write_table
from .fvd_request import RECORD, FvdRequest, SettledMethod

_SHOWN_CLIPS = 2


def measure_fvd(request: FvdRequest) -> str:
    """Make what is missing, write table, plot and contact sheets into the folder, return the table.

    Raises ValueError, before any clip is made, for files that are missing or do not fit together,
    and where the folder holds other clips.
    """
    quiet_libraries()
    prompts = request.read_prompts()
    names = dict.fromkeys(m.motion_module for m in (request.teacher, *request.methods))
    modules = {n: checkpoint.load(motion_module_path(n)).without_tensors() for n in names}
    methods = [m.settled(modules[m.motion_module].steps) for m in request.methods]
    check_methods(request, methods, prompts, modules.values())
    bench = Bench(request, prompts)
    claim_folder(request, prompts, bench.dtype)
    rows = [row for base in request.bases for row in bench.rows(base, methods)]
    write_table(request.out / TABLE, rows)
    text = show(rows)
    with atomic_path(request.out / "fvd.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    plot_distances(rows, request.out / "fvd.png")
    kind = "the miniature's probe" if request.uses_probe else "the Kinetics I3D"
    return (
        f"{text}\n\nFrechet distance in the features of {kind}, {len(prompts)} clips each, to the "
        f"teacher at {request.teacher.steps} Euler steps and cfg {request.teacher.cfg:g} under "
        "other seeds (trajectory: under the same seeds), and to true clips; the floors are the "
        "distances between two sets of the teacher's clips, and of true ones."
    )


def check_methods(
    request: FvdRequest,
    methods: Sequence[SettledMethod],
    prompts: Sequence[str],
    modules: Iterable[MotionCheckpoint],
) -> None:
    """Raise ValueError for base models, modules and prompts that do not go together."""
    for method in methods:
        request.settings(method)  # raises for steps out of range
    for name in request.bases:
        unet = empty_unet(base_path(name))
        factor = latent_factor(base_path(name), request.config)
        check_size(*(request.size or (0, 0)), factor)
        for module in modules:
            check_fit(module, unet, request.frames)
        for prompt in prompts if is_miniature(name) else ():
            world.check_prompt(prompt)
    for what, names in (
        ("base models", [_short(b) for b in request.bases]),
        ("methods", [m.label for m in methods]),
    ):
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice is not None:
            raise ValueError(
                f"two {what} are named {twice}; give each only once, or rename a file."
            )


def claim_folder(request: FvdRequest, prompts: Sequence[str], dtype: torch.dtype) -> None:
    """Write down whose clips the folder holds, or refuse that of others with ValueError.

    dtype: what is computed in, for clips of another one are other clips.
    """
    record = {
        "prompts": list(prompts),
        "seed": request.seed,
        "frames": request.frames,
        "size": request.size and list(request.size),
        "probe": request.uses_probe,
        "at_once": request.at_once,
        "dtype": str(dtype).removeprefix("torch."),
        "config": request.config and str(request.config),
        "predicts": request.prediction_type,
        "teacher_cfg": request.teacher.cfg,
    }
    claim.claim(request.out / RECORD, record, "clips")


class Bench:
    """Makes clips, keeps their features and tells their distances."""

    def __init__(self, request: FvdRequest, prompts: Sequence[str]) -> None:
        self.request, self.prompts = request, prompts
        self._device = choose_device(request.device)
        self.dtype = choose_dtype(request.dtype, self._device)
        self._features = features.network(None if request.uses_probe else request.i3d, self._device)

    def rows(self, name: str, methods: Sequence[SettledMethod]) -> Iterator[Row]:
        """Yield a row for each method on a base model, and draw its contact sheet."""
        teacher, base = self.request.teacher, _Lazy(lambda: self._load(name))
        reference, shown = self.measure(base, name, teacher, 0)
        again, _ = self.measure(base, name, teacher, features.OTHER_SEEDS)
        truth = self._truth(name)
        floor, floor_true = _distance(again, reference), _distance(*truth) if truth else ""
        sheet = [shown]
        for method in methods:
            found, shown = self.measure(base, name, method, 0)
            sheet.append(shown)
            yield {
                "base": _short(name),
                "motion_module": method.name,
                "sampler": method.sampler,
                "steps": method.steps,
                "cfg": f"{method.cfg:g}",
                "evaluations": method.evaluations,
                "n": len(found),
                "fvd": _distance(again, found),
                "floor": floor,
                "fvd_true": _distance(truth[0], found) if truth else "",
                "floor_true": floor_true,
                "trajectory": _distance(reference, found),
            }
        draw_comparison(self.request.out / f"{_short(name)}.png", sheet)

    def _truth(self, name: str) -> list[Tensor]:
        """Return the features of true clips of the prompts, twice; none where there is no truth."""
        told = is_miniature(name) and all(map(world.tells_scene, self.prompts))
        if not told or self.request.frames != world.FRAMES:
            return []
        style, at_once, seed = _short(name), self.request.at_once, self.request.seed
        return [
            features.of_true_clips(self._features, self.prompts, style, s, at_once)
            for s in (seed, seed + features.OTHER_SEEDS)
        ]

    def measure(
        self, base: "_Lazy", name: str, method: SettledMethod, shift: int
    ) -> tuple[Tensor, np.ndarray]:
        """Return the features (n, d) of a method's clips, and some frames; goes on where it was."""
        label = f"{method.label}{'-other-seeds' * bool(shift)}"
        # files of the same name with other weights are another base model, another method
        folder = f"{_short(name)}-{_digest(base_path(name))}"
        module_digest = _digest(motion_module_path(method.motion_module))
        file = self.request.out / "features" / folder / f"{label}-{module_digest}.npz"
        kept, shown = _read(file)
        if len(kept) == len(self.prompts):
            return torch.from_numpy(kept), shown
        loaded = base()
        module = self._module(method)
        step = self.request.at_once
        bar = tqdm(
            total=len(self.prompts),
            desc=f"{_short(name)}, {label}",
            unit="clip",
            initial=len(kept),
            disable=None,
            leave=False,
        )
        with bar:
            for first in range(len(kept), len(self.prompts), step):
                clips = self._clips(loaded, module, method, first, shift)
                new = self._features(clips).numpy()
                kept = np.concatenate([kept, new]) if len(kept) else new
                room = max(0, _SHOWN_CLIPS - len(shown))
                few = clips[:room, :: max(1, clips.shape[1] // SHOWN_FRAMES)].numpy()
                shown = np.concatenate([shown, few]) if len(shown) else few
                with atomic_path(file) as temporary:
                    np.savez(temporary, features=kept, shown=shown)
                bar.update(len(clips))
        return torch.from_numpy(kept), shown

    def _clips(
        self, base: BaseModel, module: MotionModule, method: SettledMethod, first: int, shift: int
    ) -> Tensor:
        """Return clips from a number on, uint8 (clips, frames, h, w, 3)."""
        side = base.default_size
        settings = self.request.settings(method).sized(side, base.latent_factor)
        prompts = self.prompts[first : first + self.request.at_once]
        seeds = [self.request.seed + shift + first + i for i in range(len(prompts))]
        latents = generate_latents(base, module, prompts, seeds, settings)
        return torch.stack([decode_frames(base, x0) for x0 in latents])

    def _load(self, name: str) -> BaseModel:
        return load_base(
            base_path(name),
            **self.request.reading(),
            device=self._device,
            dtype=self.dtype,
        )

    def _module(self, method: SettledMethod) -> MotionModule:
        motion_checkpoint = checkpoint.load(motion_module_path(method.motion_module))
        return motion_checkpoint.build(dtype=self.dtype).to(self._device)


class _Lazy:
    """A base model that is loaded when it is first needed."""

    def __init__(self, load: Callable[[], BaseModel]) -> None:
        self._load = load
        self._base: BaseModel | None = None

    def __call__(self) -> BaseModel:
        self._base = self._base or self._load()
        return self._base


def _distance(a: Tensor, b: Tensor) -> str:
    return f"{frechet.between(a, b):.4g}"


@cache
def _digest(path: Path) -> str:
    return digest(path)[:8]


def _read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the features (n, d) and frames that are kept, empty ones where there are none."""
    if not file.is_file():
        return np.empty((0, 0), np.float32), np.empty(0, np.uint8)
    with (
        one_sentence(str(file), "delete it, and the same command makes it again"),
        np.load(file) as kept,
    ):
        clips, shown = kept["features"], kept["shown"]
        if (clips.ndim, clips.dtype, shown.ndim, shown.dtype) != (2, np.float32, 5, np.uint8):
            raise ValueError("it holds no features and frames of clips")
        return clips, shown


def _short(name: str) -> str:
    """Return a base model's name as tables and folders have it."""
    return name.rpartition(":")[2] if is_miniature(name) else Path(name).stem
