"""What a stage of the miniature must reach before the next one starts.

Gate A asks whether a base model hears its caption, gate B whether the motion module is a teacher
worth distilling: measured on captions that were never trained (split.py's "validation").
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ...motion_module.module import MotionModule
from ..engine.denoising_loss import denoising_loss
from ..files import records
from ..library_errors import one_sentence
from ..models.base_model import BaseModel, encode_prompt
from ..models.latents import encode_images
from . import metrics, render, sample, split, styles, world
from .sample import Setting

CFGS = (1.5, 2.0, 2.5)  # the best one is the teacher's
_CAPTION_TIMESTEPS = (500, 850)


@dataclass(frozen=True)
class Check:
    """A figure and the bound that it must keep; `at_most` turns the bound around."""

    what: str
    value: float
    bound: float
    at_most: bool = False

    @property
    def passed(self) -> bool:
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        verdict = "ok  " if self.passed else "FAIL"
        return f"{verdict} {self.what}: {self.value:.3f} ({sign} {self.bound})"

    def as_dict(self) -> dict[str, object]:
        return asdict(self) | {"passed": self.passed}


def read_report(file: Path) -> list[Check]:
    """Return the figures that a gate has written down; ValueError where they are damaged."""
    with one_sentence(str(file), "delete it, and build again"):
        checks = [_as_check(told) for told in records.read(file, list)]
        if not checks:
            raise ValueError("it has no figures")
    return checks


def _as_check(told: dict) -> Check:
    names = ("what", "value", "bound", "at_most")
    if not isinstance(told, dict) or any(name not in told for name in names):
        raise ValueError(f"a figure lacks one of {', '.join(names)}")
    what, value, bound, at_most = (told[name] for name in names)
    return Check(str(what), float(value), float(bound), bool(at_most))


def gate_a(base: BaseModel, style: str, clips: int, steps: int) -> list[Check]:
    """Check a base model by itself: it hears its caption, and paints the caption's colour."""
    checks = [
        Check(
            f"wrong caption's loss at t = {t}, excess",
            caption_excess(base, style, t, 4 * clips),
            0.20,
        )
        for t in _CAPTION_TIMESTEPS
    ]
    scenes = metrics.held_out_scenes(clips, "validation")
    setting = Setting(style, "none", "euler", steps, 2.5, clips)
    stills = sample.sample_clips(base, None, scenes.captions(), setting, frames=1)
    means = metrics.summary(metrics.score(stills.expand(-1, 3, -1, -1, -1), scenes, style))
    return [
        *checks,
        Check("colour on single frames", means["colour"], 0.95),
        Check("grain on single frames", means["grain"], 2.0, at_most=True),
    ]


@torch.inference_mode()
def caption_excess(base: BaseModel, style: str, t: int, images: int) -> float:
    """Return how much larger the loss is with another image's caption, as a share."""
    generator = torch.Generator().manual_seed(t)
    scenes = split.draw_scenes(images, generator)
    moment = torch.randint(world.FRAMES, (images,), generator=generator)
    frames = render.render(scenes, styles.STYLES[style], generator, moment)[:, 0]
    x0 = encode_images(base, frames)
    eps = torch.randn(x0.shape, generator=generator)
    right = torch.cat([encode_prompt(base, caption) for caption in scenes.captions()])
    times = torch.full((images,), t)
    losses = [
        denoising_loss(base.unet, x0, text, times, eps, base.prediction_type).item()
        for text in (right, right.roll(1, 0))
    ]
    return losses[1] / losses[0] - 1


def best_cfg(bases: Mapping[str, BaseModel], module: MotionModule, clips: int, steps: int) -> float:
    """Return the guidance under which the teacher does best on some base models, by style.

    That is, keeps to the most captions and paths, smoothly, and in the colours of true clips.
    """

    def worth(cfg: float) -> float:
        means = [_teacher(base, module, style, cfg, clips, steps) for style, base in bases.items()]
        return sum(
            m["motion"] + m["colour"] + m["strict"] - m["jerk"] - abs(m["chroma"] - 1)
            for m in means
        )

    return max(CFGS, key=worth)


def gate_b_first(
    base: BaseModel, module: MotionModule, cfg: float, clips: int, steps: int
) -> list[Check]:
    """Check the teacher on f_0, that it stands still without it, and that few steps are worse."""
    means = _teacher(base, module, styles.F0, cfg, clips, steps)
    without = _teacher(base, None, styles.F0, cfg, max(2, clips // 4), steps)
    guided = _teacher(base, module, styles.F0, cfg, clips, steps=2)
    unguided = _teacher(base, module, styles.F0, 1.0, clips, steps=4)
    off = max(abs(guided[name] / means[name] - 1) for name in ("jerk", "chroma"))
    return [
        Check("plain: motion", means["motion"], 0.90),
        Check("plain: colour", means["colour"], 0.95),
        Check("plain: strict path", means["strict"], 0.85),
        Check("plain: jerk in pixels", means["jerk"], 0.6, at_most=True),
        Check("plain: style", means["style"], 0.90),
        Check("plain: grain", means["grain"], 2.0, at_most=True),
        Check("plain: motion without the motion module", without["motion"], 0.35, at_most=True),
        Check("plain, 2 steps: jerk or chroma, off by", off, 0.10),
        Check(
            "plain, 4 steps without guidance: strict path, lost",
            means["strict"] - unguided["strict"],
            0.05,
        ),
    ]


def gate_b_other(
    base: BaseModel, module: MotionModule, style: str, cfg: float, clips: int, steps: int
) -> list[Check]:
    """Check the same motion module on a base model that it was not trained on."""
    means = _teacher(base, module, style, cfg, clips, steps)
    return [
        Check(f"{style}: motion", means["motion"], 0.80),
        Check(f"{style}: colour", means["colour"], 0.95),
        Check(f"{style}: style", means["style"], 0.90),
        Check(f"{style}: grain", means["grain"], 2.0, at_most=True),
    ]


def _teacher(
    base: BaseModel, module: MotionModule | None, style: str, cfg: float, clips: int, steps: int
) -> dict[str, float]:
    setting = Setting(style, "teacher", "euler", steps, cfg, clips)
    scenes = metrics.held_out_scenes(clips, "validation")
    return metrics.summary(
        metrics.score(sample.sample_all(base, module, scenes, setting), scenes, style)
    )
