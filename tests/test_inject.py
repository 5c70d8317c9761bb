"""Injection by hooks: what it leaves as it was, what it refuses, and where each part goes."""

import gc
import weakref

import pytest
import torch
from animatediff_lightning.motion_module import inject as inject_file
from animatediff_lightning.motion_module import layout
from animatediff_lightning.motion_module.config import MotionModuleConfig
from animatediff_lightning.motion_module.inject import MotionRun, eject, inject, injected
from animatediff_lightning.motion_module.module import MotionModule
from torch import nn

FRAMES = 4


@pytest.fixture
def unet(thin_unet):
    return thin_unet()


@pytest.fixture
def motion_module(thin_config, random_module):
    return random_module(thin_config())


def latents(count: int = 2 * FRAMES) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return (
        torch.randn(count, 4, 8, 8, generator=generator),
        torch.randn(count, 3, 16, generator=generator),
    )


@torch.no_grad()
def run(unet: nn.Module, count: int = 2 * FRAMES) -> torch.Tensor:
    x, text = latents(count)
    return unet(x, 499, text).sample


# ---- what stays --------------------------------------------------------------------------------


def test_no_key_and_no_submodule_of_the_unet_changes(unet, motion_module):
    keys, modules = list(unet.state_dict()), dict(unet.named_modules())
    inject(unet, motion_module, num_frames=FRAMES)
    assert list(unet.state_dict()) == keys
    assert dict(unet.named_modules()) == modules


def test_another_module_takes_the_place_and_no_hook_moves(unet, thin_config, random_module):
    first, second = (random_module(thin_config(), seed=seed) for seed in (1, 2))
    handle = inject(unet, second, num_frames=FRAMES)
    of_second = run(unet)
    handle.eject()
    handle = inject(unet, first, num_frames=FRAMES)
    hooks = {name: dict(m._forward_hooks) for name, m in unet.named_modules()}
    of_first = run(unet)
    handle.replace(second)
    assert torch.equal(run(unet), of_second)
    assert handle.motion_module is second
    assert {name: dict(m._forward_hooks) for name, m in unet.named_modules()} == hooks
    handle.replace(first)
    assert torch.equal(run(unet), of_first)
    handle.eject()


def test_a_module_of_another_shape_cannot_take_the_place(unet, thin_config, random_module):
    handle = inject(unet, random_module(thin_config()), num_frames=FRAMES)
    without_mid_block = random_module(thin_config(mid=False))
    with pytest.raises(ValueError, match="another shape"):
        handle.replace(without_mid_block)
    handle.eject()


def test_ejected_unet_is_plain_to_the_bit(unet, motion_module):
    plain = run(unet)
    handle = inject(unet, motion_module, num_frames=FRAMES)
    with_motion = run(unet)
    handle.eject()
    assert (with_motion - plain).norm() > 0.05 * plain.norm()
    assert torch.equal(run(unet), plain)
    assert not any(m._forward_hooks for m in unet.modules())


@pytest.mark.parametrize("num_frames", [None, 1])
def test_one_frame_or_none_leaves_a_plain_image_model(unet, motion_module, num_frames):
    plain = run(unet)
    inject(unet, motion_module, num_frames=num_frames)
    assert torch.equal(run(unet), plain)


def test_two_clips_in_a_batch_are_independent(unet, motion_module):
    inject(unet, motion_module, num_frames=FRAMES)
    x, text = latents()
    other = x.clone()
    other[FRAMES:] += 1
    with torch.no_grad():
        first = unet(x, 499, text).sample
        second = unet(other, 499, text).sample
        alone = unet(x[:FRAMES], 499, text[:FRAMES]).sample
    torch.testing.assert_close(first[:FRAMES], second[:FRAMES], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first[:FRAMES], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(first[FRAMES:], second[FRAMES:], rtol=1e-2, atol=1e-2)


def test_frames_of_one_clip_are_not_independent(unet, motion_module):
    inject(unet, motion_module, num_frames=FRAMES)
    x, text = latents(FRAMES)
    other = x.clone()
    other[-1] += 1
    with torch.no_grad():
        change = unet(x, 499, text).sample[0] - unet(other, 499, text).sample[0]
    assert change.abs().max() > 1e-3


# ---- run state ---------------------------------------------------------------------------------


def test_frames_and_scale_may_change_between_calls(unet, motion_module):
    plain = run(unet)
    state = MotionRun()
    handle = inject(unet, motion_module, run=state)
    assert handle.run is state
    assert torch.equal(run(unet), plain)
    state.num_frames = FRAMES
    fours = run(unet)
    state.num_frames = 2 * FRAMES
    eights = run(unet)
    state.scale = 1.5
    scaled = run(unet)
    for a, b in ((plain, fours), (fours, eights), (eights, scaled)):
        assert (a - b).norm() > 1e-3 * b.norm()
    handle.eject()
    inject(unet, motion_module, num_frames=2 * FRAMES, scale=1.5)
    assert torch.equal(run(unet), scaled)


def test_a_batch_that_does_not_divide_is_refused(unet, motion_module):
    inject(unet, motion_module, num_frames=3)
    with pytest.raises(ValueError, match="batch of 8 images is not a whole number of clips of 3"):
        run(unet)


# ---- twice -------------------------------------------------------------------------------------


def test_the_same_module_twice_is_one_injection(unet, motion_module):
    first = inject(unet, motion_module, num_frames=FRAMES)
    once = run(unet)
    assert inject(unet, motion_module, num_frames=FRAMES) is first
    assert torch.equal(run(unet), once)
    assert sum(len(m._forward_hooks) for m in unet.modules()) == len(
        motion_module.temporal_transformers()
    )


def test_ejecting_twice_is_fine_and_leaves_other_hooks(unet, motion_module):
    eject(unet)  # nothing there yet
    calls = []
    hook = unet.mid_block.register_forward_hook(lambda *_: calls.append(1))
    handle = inject(unet, motion_module, num_frames=FRAMES)
    assert injected(unet) is handle
    assert handle.active
    for _ in range(2):
        handle.eject()
        eject(unet)
    assert injected(unet) is None
    assert not handle.active
    run(unet)
    assert calls == [1]
    hook.remove()


def test_an_old_handle_does_not_eject_a_newer_injection(unet, motion_module):
    old = inject(unet, motion_module, num_frames=FRAMES)
    with_motion = run(unet)
    old.eject()
    new = inject(unet, motion_module, num_frames=FRAMES)
    assert new is not old
    old.eject()
    assert torch.equal(run(unet), with_motion)


def test_another_module_is_refused_until_the_first_is_ejected(
    unet, motion_module, thin_config, random_module
):
    other = random_module(thin_config(), seed=1)
    inject(unet, motion_module, num_frames=FRAMES)
    before = run(unet)
    with pytest.raises(ValueError, match="already holds a motion module; eject that one first"):
        inject(unet, other, num_frames=FRAMES)
    assert torch.equal(run(unet), before)
    eject(unet)
    inject(unet, other, num_frames=FRAMES)
    assert not torch.equal(run(unet), before)


@pytest.mark.slow
def test_the_registry_keeps_no_unet_alive(thin_unet, motion_module):
    unet = thin_unet()
    gc.collect()
    before = len(inject_file._injections)
    inject(unet, motion_module, num_frames=FRAMES)
    assert len(inject_file._injections) == before + 1
    gone = weakref.ref(unet)
    del unet
    gc.collect()
    assert gone() is None
    assert len(inject_file._injections) == before


# ---- what does not fit -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"channels": (64, 64)},
            r"channels differ: down_blocks\.0\.motion_modules\.0 has 64 channels, the UNet 32",
        ),
        (
            {"channels": (32, 64, 64)},
            r"the UNet has no layer for down_blocks\.2\.motion_modules\.0 and 2 more",
        ),
        ({"layers": 2}, r"the UNet has no layer for down_blocks\.0\.motion_modules\.1 and 3 more"),
        (
            {"channels": (32,)},
            r"the motion module has no part for down_blocks\.1\.motion_modules\.0 and 2 more",
        ),
    ],
)
def test_a_module_of_another_shape_is_refused_with_the_first_address(
    unet, thin_config, options, message
):
    options = {"channels": (32, 64)} | options
    with pytest.raises(ValueError, match=message):
        inject(unet, MotionModule(thin_config(**options)), num_frames=FRAMES)
    assert injected(unet) is None
    assert not any(m._forward_hooks for m in unet.modules())


def test_a_module_without_a_middle_fits(unet, thin_config, random_module):
    handle = inject(unet, random_module(thin_config(mid=False)), num_frames=FRAMES)
    assert handle.active
    assert not unet.mid_block.attentions[0]._forward_hooks


def test_a_model_that_is_no_unet_is_refused(motion_module):
    with pytest.raises(ValueError, match=r"Linear is not an SD1\.5-shaped UNet"):
        inject(nn.Linear(1, 1), motion_module)


# ---- the LDM layout ----------------------------------------------------------------------------


class ResBlock(nn.Module):
    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(8, channels_in))
        self.out_layers = nn.Sequential(nn.GroupNorm(8, channels), nn.Conv2d(channels, channels, 1))
        self.skip_connection = nn.Conv2d(channels_in, channels, 1)

    def forward(self, x):
        h = self.skip_connection(x)
        return h + self.out_layers(h)


class SpatialTransformer(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.transformer_blocks = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x):
        h = x.permute(0, 2, 3, 1)
        return x + self.transformer_blocks[0](h).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x):
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return self.conv(nn.functional.interpolate(x, scale_factor=2.0))


class LDMUNet(nn.Module):
    """An SD1.5-shaped UNet in the LDM layout: attention on all four levels but the last."""

    def __init__(self, channels: tuple[int, ...] = (16, 32, 64, 64), layers: int = 2) -> None:
        super().__init__()
        last, width = len(channels) - 1, channels[0]
        self.input_blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(4, width, 3, padding=1))])
        skips = [width]
        for level, c in enumerate(channels):
            for _ in range(layers):
                block = [ResBlock(width, c)] + [SpatialTransformer(c)] * (level < last)
                self.input_blocks.append(nn.Sequential(*block))
                width = c
                skips.append(c)
            if level < last:
                self.input_blocks.append(nn.Sequential(Downsample(c)))
                skips.append(c)
        self.middle_block = nn.Sequential(ResBlock(c, c), SpatialTransformer(c), ResBlock(c, c))
        self.output_blocks = nn.ModuleList()
        for level, c in reversed(list(enumerate(channels))):
            for j in range(layers + 1):
                block = [ResBlock(width + skips.pop(), c)]
                block += [SpatialTransformer(c)] * (level < last)
                block += [Upsample(c)] * (level > 0 and j == layers)
                self.output_blocks.append(nn.Sequential(*block))
                width = c

    def forward(self, x):
        skips = []
        for block in self.input_blocks:
            x = block(x)
            skips.append(x)
        x = self.middle_block(x)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1))
        return x


LDM_PATHS = {
    # address: (path, channels); from the table "Addresses" of comfyui.md
    **{
        f"down_blocks.{i // 2}.motion_modules.{i % 2}": (f"input_blocks.{index}.{layer}", channels)
        for i, (index, layer, channels) in enumerate(
            [
                (1, 1, 16),
                (2, 1, 16),
                (4, 1, 32),
                (5, 1, 32),
                (7, 1, 64),
                (8, 1, 64),
                (10, 0, 64),
                (11, 0, 64),
            ]
        )
    },
    "mid_block.motion_modules.0": ("middle_block.1", 64),
    **{
        f"up_blocks.{i // 3}.motion_modules.{i % 3}": (
            f"output_blocks.{i}.{0 if i < 3 else 1}",
            (64, 64, 32, 16)[i // 3],
        )
        for i in range(12)
    },
}


@pytest.fixture
def ldm_unet():
    torch.manual_seed(0)
    return LDMUNet().eval().requires_grad_(False)


@pytest.fixture
def ldm_module(thin_config, random_module):
    return random_module(thin_config((16, 32, 64, 64), 2))


def test_ldm_addresses_are_those_of_the_table(ldm_unet):
    found = layout.sites(ldm_unet)
    assert {a: (s.path, s.channels) for a, s in found.items()} == LDM_PATHS
    assert all(ldm_unet.get_submodule(s.path) is s.module for s in found.values())
    # the last block of a level has its Upsample behind the site
    for path in ("output_blocks.2.1", "output_blocks.5.2", "output_blocks.8.2"):
        assert isinstance(ldm_unet.get_submodule(path), Upsample)


def test_sd15_addresses_are_the_defaults_of_the_config(thin_unet):
    with torch.device("meta"):
        unet = LDMUNet((320, 640, 1280, 1280))
    found = {a: s.channels for a, s in layout.sites(unet).items()}
    assert found == MotionModuleConfig().addresses()
    thin = layout.sites(thin_unet((32, 32, 64, 64), 2))
    assert thin.keys() == found.keys()


def test_ldm_parts_run_behind_their_blocks_and_eject_restores(ldm_unet, ldm_module):
    x = latents()[0]
    plain = ldm_unet(x)
    keys = list(ldm_unet.state_dict())
    handle = inject(ldm_unet, ldm_module, num_frames=FRAMES)
    with_motion = ldm_unet(x)
    assert list(ldm_unet.state_dict()) == keys
    handle.eject()
    assert torch.equal(ldm_unet(x), plain)
    # the same parts put into the Sequentials by hand
    parts = ldm_module.temporal_transformers()
    for address, (path, _) in LDM_PATHS.items():
        parent, _, index = path.rpartition(".")
        sequential = ldm_unet.get_submodule(parent)
        sequential.insert(int(index) + 1, Bound(parts[address]))
    by_hand = ldm_unet(x)
    torch.testing.assert_close(with_motion, by_hand, rtol=1e-5, atol=1e-5)
    assert (with_motion - plain).norm() > 0.05 * plain.norm()


class Bound(nn.Module):
    """A temporal transformer with its frame count, fit for a Sequential."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(x, FRAMES)
