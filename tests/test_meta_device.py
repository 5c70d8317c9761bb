"""Full-size steps on torch's meta device: shapes, work and copies of what a GPU would compute.

Nothing is allocated and nothing is computed, so that every path is seen at SD1.5's size on any
machine: a tensor that is left on the CPU, a value that the processor waits for, and work that grows
beyond what the architecture asks for.
"""

import contextlib

import pytest
import torch
from animatediff_lightning.distill.models import sd15_config
from animatediff_lightning.distill.models.base_model import BaseModel
from animatediff_lightning.distill.models.latents import decode_images
from animatediff_lightning.distill.models.tokenizer import load_tokenizer
from animatediff_lightning.distill.sampling import sample
from animatediff_lightning.distill.sampling.settings import SamplingSettings
from animatediff_lightning.distill.train import losses, phase, trajectory
from animatediff_lightning.distill.train.batches import Batch
from animatediff_lightning.distill.train.config import Phase, Stage
from animatediff_lightning.distill.train.discriminator import Discriminator, Encoder
from animatediff_lightning.distill.train.student import MovingBase, Student
from animatediff_lightning.motion_module.config import MotionModuleConfig
from animatediff_lightning.motion_module.inject import MotionRun, inject
from animatediff_lightning.motion_module.lora import LowRank, MotionLora, merge
from animatediff_lightning.motion_module.module import MotionModule
from animatediff_lightning.samplers import context, euler, schedule
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from . import random_models

pytestmark = pytest.mark.slow
FRAMES, SIDE = 16, 64  # of latents: 512 x 512 pixels
META = torch.device("meta")
TERA = 1e12


class NoCopies(TorchDispatchMode):
    """Fails where the processor waits for a value, or at too many copies between devices."""

    def __init__(self, allowed=0):
        super().__init__()
        self.allowed = allowed

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        name = function.overloadpacket
        if name is torch.ops.aten._local_scalar_dense:
            raise AssertionError("the processor waits for a value here")
        if name in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            source = args[1] if name is torch.ops.aten.copy_ else args[0]
            self.allowed -= source.device != result.device
            if self.allowed < 0:
                raise AssertionError(f"a copy from {source.device} to {result.device}")
        return result


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    random_models.write_tokenizer(folder)
    return load_tokenizer(folder)


def base_model(words, dtype=torch.float32):
    """Return SD1.5 at its full size, without weights."""
    with META:
        parts = (
            UNet2DConditionModel.from_config(sd15_config.UNET),
            AutoencoderKL.from_config(sd15_config.VAE),
            CLIPTextModel(CLIPTextConfig(**sd15_config.TEXT_ENCODER)),
        )
    parts = [part.to(dtype).requires_grad_(False).eval() for part in parts]
    return BaseModel("sd15", *parts, words, "epsilon")


def motion_module(dtype=torch.float32, **options):
    with META:
        return MotionModule(MotionModuleConfig(**options)).to(dtype)


def inputs(frames, dtype, side=SIDE):
    x = torch.empty(frames, 4, side, side, dtype=dtype, device=META)
    return x, torch.empty((), dtype=torch.int64, device=META), text_of(frames, dtype)


def text_of(count, dtype):
    return torch.empty(count, 77, 768, dtype=dtype, device=META)


def work(compute):
    """Return the floating-point operations of something; a product and a sum are two."""
    with FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops()


def of_temporal_transformers(frames, side=SIDE, attended=None):
    """Return what the architecture asks of a motion module: matrix products alone, by hand."""
    total, attended = 0, attended or frames
    config = MotionModuleConfig()
    depths = [(level, c) for level, widths in enumerate(config.down_blocks) for c in widths]
    last = len(config.up_blocks) - 1
    depths += [(last - level, c) for level, widths in enumerate(config.up_blocks) for c in widths]
    for level, c in depths:
        tokens = frames * (side >> level) ** 2
        projections = 2 * 2 * tokens * c * c
        attention = 2 * (4 * 2 * tokens * c * c + 2 * 2 * tokens * attended * c)
        feed_forward = 2 * tokens * c * 8 * c + 2 * tokens * 4 * c * c
        total += projections + attention + feed_forward
    return total


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_step_does_hardly_more_than_the_architecture_asks_for(words, dtype):
    unet = base_model(words, dtype).unet
    plain = work(lambda: unet(*inputs(FRAMES, dtype)))
    inject(unet, motion_module(dtype), num_frames=FRAMES)
    moved = work(lambda: unet(*inputs(FRAMES, dtype)))
    floor = of_temporal_transformers(FRAMES)
    assert plain / TERA == pytest.approx(12.85, rel=0.01)
    assert floor / TERA == pytest.approx(4.87, rel=0.01)
    assert floor <= (moved - plain) * 1.001
    assert moved <= 1.05 * (plain + floor)


def test_windows_inside_the_attention_project_each_frame_once(words):
    frames, dtype = 24, torch.float16
    unet = base_model(words, dtype).unet
    plain = work(lambda: unet(*inputs(frames, dtype)))
    options = context.ContextOptions(context_length=16, context_overlap=8, schedule="static")
    windows = context.plan(frames, options).to(torch.empty((), device=META))
    inject(unet, motion_module(dtype), run=MotionRun(frames, windows=windows))
    with NoCopies():
        moved = work(lambda: unet(*inputs(frames, dtype)))
    assert moved <= 1.05 * (plain + of_temporal_transformers(frames, attended=32))


def test_decoding_a_clip_takes_more_than_two_steps(words):
    base = base_model(words, torch.float16)
    x0 = torch.empty(FRAMES, 4, SIDE, SIDE, device=META)
    assert work(lambda: decode_images(base, x0)) / TERA == pytest.approx(40.2, rel=0.01)


@pytest.mark.parametrize("cfg", [1.0, 7.5])
@pytest.mark.parametrize("windowed", [False, True])
def test_sampling_copies_nothing_and_waits_for_nothing(words, cfg, windowed):
    base = base_model(words, torch.float16)
    frames = 24 if windowed else FRAMES
    settings = SamplingSettings(frames=frames, width=64, height=64, steps=2, cfg=cfg)
    predict_eps = sample.eps_predictor(base, ["a ship"], settings)
    if windowed:
        predict_eps = sample.in_windows(predict_eps, context.ContextOptions())
    inject(base.unet, motion_module(torch.float16), num_frames=FRAMES)
    x = torch.empty(frames, 4, 8, 8, device=META)
    with NoCopies(allowed=2 * 2 * windowed):  # indices and weights of a step's windows
        x0 = euler.sample(predict_eps, x, schedule.trailing_timesteps(2))
    assert x0.shape == x.shape


def test_a_motion_lora_is_merged_where_the_module_is():
    module = motion_module(torch.float16)
    key = "down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight"
    pair = LowRank(torch.zeros(320, 4), torch.zeros(4, 320), 1.0)
    merged = merge(module, [(MotionLora(None, {key: pair}, 0), 0.5)])
    assert module.get_parameter(key).device == META
    merged.unmerge()


STAGES = {
    "mse": {"cfg": 7.5},
    "consistency": {"cfg": 7.5, "target": "average"},
    "adversarial": {"renoise": (10, 250, 500, 750)},
    "distribution": {"cfg": 7.5},
}


@pytest.mark.parametrize(
    ("loss", "conditional"),
    [
        ("mse", True),
        ("consistency", True),
        ("adversarial", True),
        ("adversarial", False),
        ("distribution", True),
    ],
)
def test_a_training_step_of_every_loss_stays_on_the_device(words, loss, conditional):
    teacher_steps, student_steps = (4, 1) if loss == "consistency" else (4, 2)
    has_critic = loss in phase.CRITIC_LOSSES
    of_phase = Phase(iterations=1, conditional=conditional, mse_weight=0.1 * has_critic)
    stage = Stage(
        teacher_steps=teacher_steps,
        student_steps=student_steps,
        loss=loss,
        ema=0.9,
        phases=(of_phase,),
        **STAGES[loss],
    )
    networks = networks_of(base_model(words), stage, of_phase)
    starts = trajectory.start_positions(stage)[:2]
    shape = (2, FRAMES, 4, 8, 8)
    batch = Batch(
        0,
        torch.empty(shape, device=META),
        (starts[0], starts[-1]),
        ("a ship", ""),
        (750, 10) if has_critic else (None, None),
        torch.empty(shape, device=META),
    )
    if has_critic:
        of_critic, _ = phase.CRITIC_LOSSES[loss]
        with networks.critic_learns():
            step(of_critic, networks, batch, networks.plain_critic)
        networks.critic.requires_grad_(False)
    step(phase.STUDENT_LOSSES[loss], networks, batch, networks.plain_student)


def step(loss_of_batch, networks, batch, learner):
    loss, figures = loss_of_batch(networks, batch)
    assert {v.device for v in (loss, *figures.values())} == {META}
    loss.backward()
    missing = [n for n, w in learner.named_parameters() if w.grad is None or w.grad.device != META]
    assert not missing, missing


def networks_of(base, stage, of_phase):
    student = motion_module().requires_grad_(True)
    bases = {0: MovingBase(base, student)}
    discriminator = fake = None
    if stage.loss == "adversarial":
        with META:
            encoder = Encoder(base.unet, motion_module(), 1, None)
            discriminator = Discriminator(
                encoder,
                conditional=of_phase.conditional,
                head_channels=64,
                head_blocks=4,
                generator=None,
            )
    if stage.loss == "distribution":
        fake = Student(motion_module().requires_grad_(True), bases)
    moved = Student(student, bases)
    return losses.Networks(
        stage=stage,
        phase=of_phase,
        bases=bases,
        teacher=motion_module(),
        real=motion_module() if fake is not None else None,
        plain_student=moved,
        student=moved,
        plain_discriminator=discriminator,
        discriminator=discriminator,
        plain_fake=fake,
        fake=fake,
        text_base=base,
        base_index={0: 0},
        base_names=["sd15"],
        relativistic=False,
        autocast=contextlib.nullcontext,
        averaged=motion_module() if stage.target == "average" else None,
    )
