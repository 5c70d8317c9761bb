"""Generation without a host: base models, noise, sampling, guidance, clip files."""

import json
import re
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from animatediff_lightning.distill.files import clip_writer
from animatediff_lightning.distill.models import base_model, sd15_config
from animatediff_lightning.distill.models.haar_vae import HaarVAE
from animatediff_lightning.distill.models.latents import (
    decode_frames,
    decode_images,
    encode_images,
    to_images,
)
from animatediff_lightning.distill.sampling import sample as generate
from animatediff_lightning.distill.sampling.settings import SamplingSettings
from animatediff_lightning.motion_module import checkpoint
from animatediff_lightning.motion_module.inject import inject, injected
from animatediff_lightning.samplers import context, prediction, schedule
from diffusers.configuration_utils import register_to_config
from PIL import Image
from safetensors.torch import load_file, save_file

from . import headless_ldm, random_models

FRAMES = 4


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    # thin models: two processes that share two cores spin instead of working
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return random_models.ensure(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def base(models):
    return base_model.load_base(models.base)


@pytest.fixture(scope="module")
def motion(models):
    return checkpoint.load(models.motion_module).build(dtype=torch.float32)


def settings_for(base, **options):
    options = {"frames": FRAMES, "steps": 2} | options
    return SamplingSettings(**options).sized(base.default_size, base.latent_factor)


def latents(base, module, prompt="a cat", seed=0, **options):
    settings = settings_for(base, **options)
    return generate.generate_latents(base, module, [prompt], [seed], settings)[0]


def test_noise_is_comfyuis_for_the_same_seed(base):
    ours = generate.initial_noise(
        base, settings_for(base, width=96), torch.Generator().manual_seed(7)
    )
    # comfy.sample.prepare_noise, line for line
    with torch.random.fork_rng():
        theirs = torch.randn((FRAMES, 4, 8, 12), generator=torch.manual_seed(7), device="cpu")
    assert torch.equal(ours, theirs)


def test_euler_is_the_reference_loop_written_out(base, motion):
    """One step by hand, from exactly unit noise: x0 = (x - sqrt(1 - ab) eps) / sqrt(ab) at T."""
    x = torch.randn(FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = base_model.encode_prompt(base, "a cat").expand(FRAMES, -1, -1)
    injection = generate.inject(base.unet, motion, num_frames=FRAMES)
    with torch.inference_mode():
        eps = base.unet(x, 999, encoder_hidden_states=text).sample
    injection.eject()
    ab = schedule.alphas_cumprod()[999]
    expected = (x - (1 - ab).sqrt() * eps) / ab.sqrt()
    torch.testing.assert_close(
        latents(base, motion, steps=1), expected.float(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
def test_a_seed_repeats_and_another_differs(base, motion):
    assert torch.equal(latents(base, motion), latents(base, motion))
    assert not torch.equal(latents(base, motion), latents(base, motion, seed=1))


@pytest.mark.slow
def test_motion_module_prompt_and_scale_change_the_clip(base, motion):
    clip = latents(base, motion)
    assert not torch.allclose(clip, latents(base, None), atol=1e-2)
    assert not torch.allclose(clip, latents(base, motion, "a dog in the snow"), atol=1e-3)
    assert not torch.allclose(clip, latents(base, motion, motion_scale=3.0), atol=1e-3)


@pytest.mark.slow
def test_frames_know_of_each_other_only_through_the_motion_module(base, motion):
    """Without it, a longer clip's first frames are the shorter clip's; with it they are not."""
    alone = (latents(base, None, frames=2), latents(base, None, frames=3))
    torch.testing.assert_close(alone[0], alone[1][:2], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(
        latents(base, motion, frames=2), latents(base, motion, frames=3)[:2], atol=1e-2
    )


@pytest.mark.slow
def test_long_clips_are_sampled_in_windows(base, motion):
    """Static windows by hand: one step, each window's eps fused by weight."""
    options = {"frames": 20, "context_length": 8, "context_overlap": 2, "steps": 1}
    clip = latents(base, motion, **options)
    assert clip.shape[0] == 20
    settings = settings_for(base, **options)
    noise = generate.initial_noise(base, settings, torch.Generator().manual_seed(0))
    plan = context.plan(20, settings.context)
    injection = inject(base.unet, motion, num_frames=8)
    predict_eps = generate.eps_predictor(base, ["a cat"], settings)
    eps = torch.zeros_like(noise)
    for window, weight in zip(plan.indices, plan.weights.float(), strict=True):
        eps[window] += predict_eps(noise[window], 999) * weight[:, None, None, None]
    injection.eject()
    torch.testing.assert_close(clip, prediction.x0_from_eps(noise, eps, 999), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_clips_in_windows_are_sampled_together_as_alone(base, motion):
    settings = settings_for(base, frames=12, context_length=8, context_overlap=2, cfg=2.0)
    prompts, seeds = ["a cat", "a dog"], [3, 4]
    together = generate.generate_latents(base, motion, prompts, seeds, settings)
    assert together.shape == (2, 12, 4, 8, 8)
    for clip, prompt, seed in zip(together, prompts, seeds, strict=True):
        (alone,) = generate.generate_latents(base, motion, [prompt], [seed], settings)
        torch.testing.assert_close(clip, alone, rtol=1e-3, atol=1e-3)


def test_one_window_is_the_plain_clip(base, motion):
    plain = latents(base, motion, frames=8)
    torch.testing.assert_close(latents(base, motion, frames=8, context_length=8), plain)


def test_the_unet_is_left_as_it_was(base, motion):
    with pytest.raises(RuntimeError, match="stop"):
        generate.generate_latents(base, motion, ["a cat"], [0], settings_for(base), on_step=_stop)
    assert injected(base.unet) is None


def _stop():
    raise RuntimeError("stop")


def test_guidance_is_that_of_two_runs(base, motion):
    """cfg mixes the prompt's and the negative prompt's eps; equal prompts cancel out."""
    x = torch.randn(FRAMES, 4, 8, 8)
    settings = settings_for(base, cfg=3.0, negative_prompt="a dog")
    with torch.inference_mode():
        injection = generate.inject(base.unet, motion, num_frames=FRAMES)
        guided = generate.eps_predictor(base, ["a cat"], settings)(x, 499)
        wanted, unwanted = (
            generate.eps_predictor(base, [p], settings_for(base))(x, 499)
            for p in ("a cat", "a dog")
        )
        injection.eject()
    torch.testing.assert_close(guided, unwanted + 3.0 * (wanted - unwanted), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        latents(base, motion, cfg=5.0, negative_prompt="a cat"),
        latents(base, motion),
        rtol=1e-3,
        atol=1e-2,
    )


@pytest.mark.parametrize("sampler", ["dpmpp", "lcm"])
def test_other_samplers_repeat_and_count_their_steps(base, motion, sampler):
    calls = []
    clip = (base, motion, ["a"], [0], settings_for(base, sampler=sampler, steps=3))
    (x,) = generate.generate_latents(*clip, on_step=lambda: calls.append(1))
    assert len(calls) == 3
    assert torch.equal(x, generate.generate_latents(*clip)[0])
    assert torch.isfinite(x).all()
    assert not torch.allclose(x, latents(base, motion, "a", steps=3), atol=1e-2)


@pytest.mark.parametrize("steps", [1, 100, 101, 150, 300])
def test_lcm_begins_at_the_last_timestep_for_any_steps(steps):
    seen = []
    x = torch.zeros(1, 4, 2, 2)

    def predict_eps(x, t):
        seen.append(t)
        return torch.zeros_like(x)

    generate._lcm(predict_eps, x, steps, torch.Generator().manual_seed(0), lambda: None)
    assert seen[0] == 999
    assert len(seen) == steps


def test_dpmpp_recovers_x0_from_true_noise():
    """With the eps of one fixed x0, every sampler of the flow must land on it."""
    x0, noise = torch.randn(2, 1, 4, 8, 8).unbind()
    ab = schedule.alphas_cumprod()

    def predict_eps(x, t):
        return ((x - ab[t].sqrt() * x0) / (1 - ab[t]).sqrt()).float()

    for sample in (generate._euler, generate._dpmpp):
        start = prediction.move(noise, noise, 999, 999)
        x = sample(predict_eps, start, 8, torch.Generator(), lambda: None)
        torch.testing.assert_close(x, x0, rtol=1e-2, atol=2e-2)


@pytest.mark.slow
def test_v_prediction_base_is_honoured(tmp_path, base):
    """The scheduler config names v; the same network output then means another eps."""
    models = random_models.write(tmp_path, prediction_type="v_prediction")
    v_base = base_model.load_base(models.base)
    assert v_base.prediction_type == "v_prediction"
    x = torch.randn(FRAMES, 4, 8, 8)
    settings = settings_for(base)
    with torch.inference_mode():
        out = generate.eps_predictor(base, ["a cat"], settings)(x, 499)
        eps = generate.eps_predictor(v_base, ["a cat"], settings)(x, 499)
    ab = schedule.alphas_cumprod()[499]
    torch.testing.assert_close(
        eps, ((1 - ab).sqrt() * x + ab.sqrt() * out).float(), rtol=1e-4, atol=1e-4
    )
    overridden = base_model.load_base(models.base, prediction_type="epsilon")
    assert overridden.prediction_type == "epsilon"


def test_decode_in_chunks_is_decode_at_once(base):
    z = torch.randn(5, 4, 8, 8)
    at_once = decode_frames(base, z, at_once=5)
    assert at_once.shape == (5, 64, 64, 3)
    assert at_once.dtype == torch.uint8
    in_chunks = decode_frames(base, z, at_once=2)
    assert (at_once.int() - in_chunks.int()).abs().max() <= 1
    with torch.inference_mode():
        image = base.vae.decode(z / 0.18215).sample
    expected = ((image / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1)
    assert (expected - at_once).abs().max() <= 1


class _ShiftedVAE(HaarVAE):
    """A VAE without loss whose latents are shifted before they are scaled, as Flux' are."""

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 12,
        block_out_channels: tuple[int, ...] = (3, 12),
        scaling_factor: float = 2.0,
        shift_factor: float = 0.25,  # noqa: ARG002 - kept in the config
    ) -> None:
        super().__init__(latent_channels, block_out_channels, scaling_factor=scaling_factor)


def test_latents_are_shifted_and_scaled_both_ways(base):
    shifted = replace(base, vae=_ShiftedVAE())
    frames = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    images = to_images(frames)
    z = encode_images(shifted, images)
    plain = HaarVAE().encode(images).latent_dist.mode()
    torch.testing.assert_close(z, (plain - 0.25) * 2)
    torch.testing.assert_close(decode_images(shifted, z), images)
    assert np.array_equal(decode_frames(shifted, z), frames)


def test_latents_are_whitened_by_the_mean_and_deviation_of_each_channel(base):
    mean, deviation = [0.1 * i for i in range(12)], [0.5 + 0.1 * i for i in range(12)]
    vae = HaarVAE(latents_mean=mean, latents_std=deviation, scaling_factor=3.0)
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    z = encode_images(replace(base, vae=vae), images)
    plain = HaarVAE().encode(images).latent_dist.mode()
    wanted = [(plain[:, i] - mean[i]) / deviation[i] * 3 for i in range(12)]
    torch.testing.assert_close(z, torch.stack(wanted, dim=1))
    torch.testing.assert_close(decode_images(replace(base, vae=vae), z), images)


def test_nothing_assumes_sd15_sizes(base, motion):
    x = latents(base, motion, width=88, height=40)
    assert x.shape == (FRAMES, 4, 5, 11)
    assert decode_frames(base, x).shape == (FRAMES, 40, 88, 3)


def test_single_file_in_ldm_layout_is_the_same_base(tmp_path, models, base, motion):
    file = headless_ldm.write(models.base, tmp_path / "thin.safetensors")
    single = base_model.load_base(file, config=models.base)
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(single, part).state_dict(), getattr(base, part).state_dict()
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs), part
    # memory laid out otherwise picks other kernels, so not bit for bit
    torch.testing.assert_close(latents(single, motion), latents(base, motion), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_single_file_needs_no_config_folder(tmp_path, monkeypatch, models, base):
    """With the shipped configs, made thin: they hold every key that the conversion reads."""
    for part in ("unet", "vae", "text_encoder"):
        thin = getattr(base, part).config
        shipped = getattr(sd15_config, part.upper())
        for key in shipped.keys() - {"_class_name", "architectures", "model_type"}:
            monkeypatch.setitem(shipped, key, getattr(thin, key))
    file = headless_ldm.write(models.base, tmp_path / "thin.safetensors")
    single = base_model.load_base(file, tokenizer=models.base / "tokenizer")
    ours, theirs = single.unet.state_dict(), base.unet.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert single.prediction_type == "epsilon"


def test_shipped_configs_are_sd15(tmp_path):
    """Parameter counts of SD1.5's UNet, VAE and text encoder."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = sd15_config.write_configs(tmp_path)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(
            UNet2DConditionModel.load_config(folder, subfolder="unet")
        )
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder, subfolder="vae"))
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(folder, subfolder="text_encoder"))
    counts = [sum(p.numel() for p in m.parameters()) for m in (unet, vae, text)]
    assert counts == [859_520_964, 83_653_863, 123_060_480]
    assert unet.config.sample_size * 8 == 512


@pytest.mark.slow
def test_missing_weights_are_not_filled_with_random_ones(tmp_path):
    random_models.write(tmp_path)
    file = tmp_path / "base/unet/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights.pop("conv_in.weight")
    save_file(weights, file)
    with pytest.raises(ValueError, match=r"base/unet lacks conv_in\.weight"):
        base_model.load_base(tmp_path / "base")


def test_random_models_are_the_same_anywhere(tmp_path, models):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    random_models.ensure(tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())
    files = [p.relative_to(tmp_path) for p in tmp_path.rglob("*.safetensors")]
    assert len(files) == 4
    for file in files:  # not bytes: safetensors writes metadata in any order
        ours, theirs = (load_file(p / file) for p in (tmp_path, models.base.parents[1]))
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs | ours), file
    assert [p.name for p in tmp_path.iterdir()] == ["random-models-1"]


def test_tokenizer_tells_prompts_apart(base):
    ids = base.tokenizer("a cat \u00e9 \u732b").input_ids
    assert ids[0] == base.tokenizer.bos_token_id
    assert base.tokenizer.eos_token_id not in ids[1:-1]
    assert base_model.encode_prompt(base, "x" * 300).shape == (1, 77, 64)


def moving_square(count=6, height=48, width=64):
    clip = np.full((count, height, width, 3), (30, 60, 200), np.uint8)
    for i, frame in enumerate(clip):
        frame[10:30, 4 * i : 4 * i + 20] = (220, 180, 40)
    return clip


def test_mp4_decodes_to_the_frames_and_colours(tmp_path):
    clip = moving_square()
    path = clip_writer.write_clip(tmp_path / "a.mp4", clip, fps=12.5)
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert float(stream.average_rate) == 12.5
        frames = [
            f.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray()
            for f in container.decode(stream)
        ]
    assert np.abs(np.stack(frames).astype(int) - clip).mean() < 4


def test_gif_and_webp_keep_every_frame_and_the_duration(tmp_path):
    clip = moving_square()
    for kind, unit in (("gif", 10), ("webp", 1)):
        with Image.open(clip_writer.write_clip(tmp_path / f"a.{kind}", clip, fps=8)) as image:
            assert image.n_frames == len(clip)
            assert image.size == (64, 48)
            total = 0
            for i in range(image.n_frames):
                image.seek(i)
                image.load()
                total += image.info["duration"]
            assert abs(total - 750) < unit + 1
            assert np.abs(np.array(image.convert("RGB")).astype(int) - clip[-1]).mean() < 6


def test_contact_sheet_holds_each_frame(tmp_path):
    clip = moving_square(count=5)
    sheet = np.array(Image.open(clip_writer.write_clip(tmp_path / "a.png", clip, fps=8)))
    assert sheet.shape == (2 * 48, 3 * 64, 3)
    for i, frame in enumerate(clip):
        y, x = 48 * (i // 3), 64 * (i % 3)
        assert np.array_equal(sheet[y : y + 48, x : x + 64], frame)
    assert not sheet[48:, 128:].any()


def test_durations_do_not_drift():
    assert set(clip_writer.frame_durations(8, 8, unit=10)) == {120, 130}
    assert sum(clip_writer.frame_durations(8, 8, unit=10)) == 1000
    assert sum(clip_writer.frame_durations(90, 30, unit=10)) == 3000


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="even width"):
        clip_writer.write_clip(tmp_path / "a.mp4", moving_square(width=63), fps=8)
    assert list(tmp_path.iterdir()) == []


def test_without_h264_the_clip_is_still_written(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(clip_writer, "H264", "no-such-encoder")
    path = clip_writer.write_clip(tmp_path / "a.mp4", moving_square(), fps=8)
    assert re.search(r"no no-such-encoder encoder.*mpeg4", caplog.text)
    with av.open(path) as container:
        assert len(list(container.decode(video=0))) == 6


def test_random_base_is_an_ordinary_diffusers_folder(models):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(models.base)
    assert pipeline.unet.config.sample_size == 8
    index = json.loads((models.base / "model_index.json").read_text())
    assert index["tokenizer"] == ["transformers", "CLIPTokenizer"]
