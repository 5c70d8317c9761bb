"""How good a student is while it trains, on base models and captions that no slot trains with.

Three figures for a base model: how far its clips are from true ones, or from the undistilled
teacher's under other seeds (Frechet distance, as `evaluate fvd` has it); how much guidance each
step has learned; and how far each step lands from where its teacher does. A student that drifts
shows it here first: its training loss never sees another base model.
"""

import contextlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...motion_module import checkpoint
from ...motion_module.files import atomic_path
from ...motion_module.module import MotionModule
from ...samplers import prediction
from ..engine import distributed
from ..engine.average import copy_average
from ..evaluate import features, frechet
from ..files import records
from ..library_errors import one_sentence
from ..miniature import metrics
from ..miniature.names import PREFIX, is_miniature, motion_module_path
from ..models.base_model import BaseModel
from ..models.latents import decode_frames
from ..sampling.request import read_prompts
from ..sampling.sample import generate_latents, initial_noise
from ..sampling.settings import SamplingSettings
from . import trajectory
from .config import Stage, TrainConfig, ValidationTable
from .losses import Networks
from .phase import PhaseTrainer
from .run_folder import Place
from .student import MovingBase

FILE = "validation.jsonl"
_WALKS = 8  # clips on which each step is looked at
_GAIN = 0.05  # a distance that fell by less has hardly changed: it varies by that from seed to seed
_VERSIONS = ("torch", "diffusers", "transformers")
_KINDS: dict[str, type | tuple[type, ...]] = {  # of what a line tells of a measurement
    "base": str,
    "stage": int,
    "phase": int,
    "iteration": int,
    "moved": (int, float),
    "frechet": (int, float),
    "guidance": list,
    "landing": list,
}
_CONSISTENCY_STEPS = 4  # its students have no step count of their own


class Figures(NamedTuple):
    """What a student reached on a base model.

    moved: its weights' distance from where the stage began, as a share of their norm, the same for
    every base model; frechet: distance of its clips; guidance: of each step, 1 for none and the
    teacher's cfg for all of it: the projection of x0 on what guidance adds to the undistilled
    teacher's; landing: of each step, root mean square of student's minus teacher's latents. Both
    are empty for a consistency student.
    """

    moved: float
    frechet: float
    guidance: list[float]
    landing: list[float]


class Validator:
    """Measures students; its base models are loaded by every process, its clips shared out.

    load: returns a base model by its name, frozen and on the device. Raises ValueError for files
    that are missing or damaged.
    """

    def __init__(
        self, config: TrainConfig, device: torch.device, load: Callable[[str], BaseModel]
    ) -> None:
        assert config.validation is not None, "nothing asks for a validation"
        self._config, self._table, self._device = config, config.validation, device
        self._bases = {name: load(name) for name in self._table.bases}
        undistilled = checkpoint.load(motion_module_path(config.teacher))
        dtype = getattr(torch, config.frozen_dtype)
        self._undistilled = undistilled.build(dtype=dtype).to(device)
        # hooks and recomputing of the student that is trained must not come along with a copy of it
        self._student = undistilled.build(dtype=torch.float32).to(device)
        self._features = features.network(self._table.i3d, device)
        self._captions = captions_of(self._table)
        self._references: dict[str, Tensor] = {}
        self._start: dict[str, Tensor] = {}

    @property
    def every(self) -> int:
        return self._table.every

    def begin(self, module: MotionModule) -> None:
        """Remember what a stage's student starts as."""
        self._start = {k: w.detach().to("cpu", copy=True) for k, w in module.named_parameters()}

    def validate(self, trainer: PhaseTrainer, place: Place) -> dict[str, Figures]:
        """Measure the averaged student, and let the trainer remember it where it is the best yet.

        A phase's start is measured too, and never the best: nothing was learned in it yet.
        """
        trained = dict(trainer.networks.plain_student.motion_module.named_parameters())
        copy_average(trainer.average or trained, dict(self._student.named_parameters()))
        found = self.measure(trainer.networks, self._student)
        if self._table.keep_best and place.count:
            distance = sum(f.frechet for f in found.values()) / len(found)
            trainer.remember(distance, place.count, self._student)
        return found

    def measure(self, networks: Networks, module: MotionModule) -> dict[str, Figures]:
        """Return the figures of a student on each base model; every process must ask."""
        moved = self._displacement(module)
        return {name: self._measure(name, networks, module, moved) for name in self._bases}

    def _measure(
        self, name: str, networks: Networks, module: MotionModule, moved: float
    ) -> Figures:
        stage = networks.stage
        if name not in self._references:
            self._references[name] = self._reference(name)
        settings = _settings(self._config, stage)
        clips = self._features_of(name, module, settings, 0, networks.autocast)
        distance = frechet.between(clips, self._references[name])
        if stage.loss == "consistency":
            return Figures(moved, distance, [], [])
        with networks.autocast():
            return Figures(moved, distance, *self._along(name, networks, module))

    def _displacement(self, module: MotionModule) -> float:
        """Return how far the weights are from where the stage began, as a share of their norm."""
        moved = norm = 0.0
        for name, weight in module.named_parameters():
            start = self._start[name]
            moved += (weight.detach().cpu() - start).double().square().sum().item()
            norm += start.double().square().sum().item()
        return (moved / norm) ** 0.5

    def _reference(self, name: str) -> Tensor:
        """Return features (n, d) of true clips, else of the undistilled teacher's."""
        if is_miniature(name) and self._table.i3d is None:
            captions = _cycled(self._captions, self._table.clips)
            style = name.removeprefix(PREFIX)
            at_once = self._config.clips_per_rank
            return features.of_true_clips(
                self._features, captions, style, features.OTHER_SEEDS, at_once
            )
        settings = _sized(self._config, steps=self._table.steps, cfg=guidance_of(self._config))
        return self._features_of(name, self._undistilled, settings, features.OTHER_SEEDS)

    def _features_of(
        self,
        name: str,
        module: MotionModule,
        settings: SamplingSettings,
        first_seed: int,
        autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ) -> Tensor:
        """Return features (n, d) of clips, of all processes; clip i has seed first + i."""
        captions = _cycled(self._captions, self._table.clips)
        base = self._bases[name]
        found: dict[int, Tensor] = {}
        # "lcm" draws the noise of its steps for all clips that run together
        at_once = 1 if settings.sampler == "lcm" else self._config.clips_per_rank
        for few in _batched(_mine(len(captions)), at_once):
            seeds = [first_seed + i for i in few]
            with autocast():
                latents = generate_latents(
                    base, module, [captions[i] for i in few], seeds, settings
                )
            clips = torch.stack([decode_frames(base, x0) for x0 in latents])
            found |= dict(zip(few, self._features(clips), strict=True))
        every = {i: f for part in distributed.gather(found) for i, f in part.items()}
        return torch.stack([every[i] for i in sorted(every)])

    @torch.no_grad()
    def _along(
        self, name: str, networks: Networks, module: MotionModule
    ) -> tuple[list[float], list[float]]:
        """Return guidance and landing of each step, on the student's own walks."""
        captions = _cycled(self._captions, min(_WALKS, self._table.clips))
        steps = networks.stage.student_steps
        sums = torch.zeros(4, steps, dtype=torch.float64)
        moving = MovingBase(self._bases[name], module)
        try:
            for i in _mine(len(captions)):
                sums += self._walk(moving, networks, captions[i], seed=i)
        finally:
            moving.close()
        along, guided, apart, count = torch.stack(distributed.gather(sums)).sum(0)
        return (1 + along / guided).tolist(), (apart / count).sqrt().tolist()

    def _walk(self, moving: MovingBase, networks: Networks, caption: str, seed: int) -> Tensor:
        """Return sums (4, steps) over a clip: <s, g>, <g, g>, squares of the landings, and count.

        s is what the student's x0 has more than the unguided teacher's, g what guidance of 2 has.
        """
        stage = networks.stage
        teacher_steps = stage.teacher_steps_of(networks.phase)
        text, negative = moving.encode([caption]), moving.encode([""])
        generator = torch.Generator().manual_seed(seed)
        size = _sized(self._config, steps=stage.student_steps, cfg=1.0)
        x = initial_noise(moving.base, size, generator).to(self._device)[None]

        def predict_guided(x: Tensor, t: Tensor) -> Tensor:
            return moving.predict_guided(x, t, text, negative, stage.cfg)

        columns = []
        for start in trajectory.walk(trajectory.CLEAN_POSITION, stage.student_steps):
            t = trajectory.timesteps([start]).to(self._device)
            eps = moving.predict_eps(x, t, text)
            with moving.moved_by(self._undistilled):
                told, untold = (moving.predict_eps(x, t, words) for words in (text, negative))
            x0, x0_told, x0_untold = (trajectory.to_clean(x, e, t) for e in (eps, told, untold))
            points = trajectory.points(start, stage.student_steps, teacher_steps)
            with moving.moved_by(networks.teacher):
                wanted, _ = trajectory.follow(predict_guided, x, [points])
            own = trajectory.points(start, stage.student_steps, stage.student_steps)
            x = prediction.move(x, eps, t, trajectory.timesteps(own[-1:]).to(self._device))
            added, guidance = (x0 - x0_told).double(), (x0_told - x0_untold).double()
            apart = (x - wanted).double().square().sum()
            column = ((added * guidance).sum(), guidance.square().sum(), apart)
            columns.append([*(c.item() for c in column), float(x.numel())])
        return torch.tensor(columns, dtype=torch.float64).T


class Record:
    """The lines of validation.jsonl, one a measurement; used by the first process alone.

    A run that goes on from a checkpoint drops the lines behind it and writes them again. Whenever
    a phase is begun or gone on with, a line tells the versions, the machine and the config.
    """

    def __init__(self, folder: Path, resumed: Place) -> None:
        self.file = folder / FILE
        kept = [line for line in read_lines(folder) if _is_before(line, resumed)]
        with atomic_path(self.file) as temporary:
            temporary.write_text("".join(map(_as_line, kept)), encoding="utf-8")

    def begin(self, config: TrainConfig, device: torch.device) -> None:
        """Write what the following lines are made by."""
        told = {
            "versions": {name: _version_of(name) for name in _VERSIONS},
            "machine": _name_of(device),
            "processes": distributed.world_size(),
            "config": config.digest(),
        }
        self._write([told])

    def add(self, place: Place, found: Mapping[str, Figures]) -> None:
        """Write what was measured at a place."""
        at = {"stage": place.stage, "phase": place.phase, "iteration": place.count}
        self._write([at | {"base": base} | figures._asdict() for base, figures in found.items()])

    def _write(self, lines: Sequence[Mapping[str, object]]) -> None:
        with self.file.open("a", encoding="utf-8") as target:
            target.writelines(map(_as_line, lines))


def describe(folder: Path, config: TrainConfig, number: int) -> list[str]:
    """Return a sentence for each base model: what a stage changed, from its start to its result.

    And one more where it changed next to nothing.
    """
    told = [line for line in read_lines(folder) if line.get("stage") == number]
    kept = _kept(config, told)
    sentences, gains = [], []
    for base in dict.fromkeys(line["base"] for line in told):
        of_base = [line for line in told if line["base"] == base]
        first = of_base[0]
        last = next((line for line in of_base if _at(line) == kept), first)
        before, after = first["frechet"], last["frechet"]
        sentence = f"the distance on {base} went from {before:.4g} to {after:.4g}"
        for name in ("guidance", "landing"):
            if first[name]:
                sentence += f", {name} from {_mean(first[name]):.3g} to {_mean(last[name]):.3g}"
        sentences.append(f"{sentence}; the weights moved by {last['moved']:.2%}.")
        gains.append(1 - after / before if before else 0.0)
    if gains and max(gains) < _GAIN:
        sentences.append(
            f"no distance fell by {_GAIN:.0%}; raise learning_rate or iterations, or leave the "
            "stage out."
        )
    return sentences


def _kept(config: TrainConfig, lines: Sequence[dict]) -> tuple[int, int] | None:
    """Return the place of a stage's result: the best of its last phase, or the last."""
    means: dict[tuple[int, int], float] = {}
    for line in lines:
        if line["phase"] == lines[-1]["phase"] and line["iteration"]:
            means[_at(line)] = means.get(_at(line), 0.0) + line["frechet"]
    if config.validation is not None and config.validation.keep_best:
        return min(means, key=lambda at: means[at], default=None)
    return max(means, default=None)


def _at(line: dict) -> tuple[int, int]:
    return line["phase"], line["iteration"]


def read_lines(folder: Path) -> list[dict]:
    """Return what validation.jsonl tells, none where there is no such file.

    A kill may leave half a line at the end, which is left out.
    """
    file = folder / FILE
    if not file.is_file():
        return []
    told = []
    with one_sentence(str(file), "delete it; the run goes on without its earlier lines"):
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.endswith("}"):
                told.append(_checked(records.parse(line, dict)))
    return told


def _checked(line: dict) -> dict:
    """Return a line; ValueError where it tells a measurement, but not all of it."""
    if "stage" not in line:
        return line
    wrong = [key for key, kind in _KINDS.items() if not isinstance(line.get(key), kind)]
    if wrong:
        raise ValueError(f"a line does not tell its {', '.join(wrong)}")
    if not all(isinstance(n, (int, float)) for n in (*line["guidance"], *line["landing"])):
        raise ValueError("a line tells a guidance or landing that is no number")
    return line


def _as_line(told: Mapping[str, object]) -> str:
    return json.dumps(told) + "\n"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _version_of(name: str) -> str:
    """Return a library's version; torch's own also tells what it was built for."""
    return str(torch.__version__) if name == "torch" else metadata.version(name)


def _name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def captions_of(table: ValidationTable) -> list[str]:
    """Return the captions to measure with; ValueError for a file that holds none."""
    if table.prompts is not None:
        return list(read_prompts(table.prompts))
    return metrics.held_out_scenes(table.clips, "validation").captions()


def guidance_of(config: TrainConfig) -> float:
    """Return the guidance of the undistilled teacher that students are measured against."""
    table = config.validation
    if table is not None and table.cfg is not None:
        return table.cfg
    return max(stage.guidance_of_real for stage in config.stages)


def _settings(config: TrainConfig, stage: Stage) -> SamplingSettings:
    if stage.loss == "consistency":
        return _sized(config, steps=_CONSISTENCY_STEPS, cfg=1.0, sampler="lcm")
    return _sized(config, steps=stage.student_steps, cfg=1.0)


def _sized(config: TrainConfig, steps: int, cfg: float, sampler: str = "euler") -> SamplingSettings:
    return SamplingSettings(
        frames=config.frames,
        width=config.width,
        height=config.height,
        steps=steps,
        cfg=cfg,
        sampler=sampler,
    )


def _cycled(captions: Sequence[str], n: int) -> list[str]:
    return [captions[i % len(captions)] for i in range(n)]


def _mine(n: int) -> list[int]:
    return list(range(distributed.rank(), n, distributed.world_size()))


def _batched(numbers: Sequence[int], size: int) -> list[Sequence[int]]:
    return [numbers[i : i + size] for i in range(0, len(numbers), size)]


def _is_before(told: dict, resumed: Place) -> bool:
    """Tell whether a line was written before a checkpoint was; a phase's start is measured anew."""
    if "stage" not in told:
        return True
    place = Place(told["stage"], told["phase"], told["iteration"])
    return place < resumed or (place == resumed and place.count > 0)
