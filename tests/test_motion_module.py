"""The motion module against diffusers, with the same weights, and against the formula itself."""

import math

import pytest
import torch
from animatediff_lightning.motion_module import keys, temporal
from animatediff_lightning.motion_module.config import MotionModuleConfig
from animatediff_lightning.motion_module.inject import inject
from animatediff_lightning.motion_module.module import MotionModule
from diffusers import MotionAdapter, UNetMotionModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import nn
from torch.nn import functional

FRAMES = 6
ADDRESS = "up_blocks.0.motion_modules.1"


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).norm() / theirs.norm())


@pytest.fixture
def x():
    # frames of unlike brightness, so that statistics per frame and per clip differ
    noise = torch.randn(2 * FRAMES, 64, 5, 3, generator=torch.Generator().manual_seed(3))
    return noise * torch.linspace(0.3, 2, 2 * FRAMES)[:, None, None, None] + noise[:, :1]


@pytest.fixture
def part(thin_config, random_module):
    """Factory of one temporal transformer of 64 channels; the same weights in either scope."""

    def make(scope: str = "frame") -> temporal.TemporalTransformer:
        return random_module(thin_config(norm_scope=scope)).temporal_transformers()[ADDRESS]

    return make


# ---- against diffusers -------------------------------------------------------------------------


def test_clip_scope_equals_diffusers_transformer(part, x):
    ours = part("clip")
    theirs = AnimateDiffTransformer3D(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=64,
        norm_num_groups=8,
        positional_embeddings="sinusoidal",
        num_positional_embeddings=16,
        activation_fn="geglu",
    ).eval()
    prefix = f"{ADDRESS}.temporal_transformer."
    renamed = keys.to_diffusers({prefix + k: t for k, t in ours.state_dict().items()})
    renamed = {k.removeprefix(ADDRESS + "."): t for k, t in renamed.items()}
    theirs.load_state_dict(renamed, strict=True)
    with torch.no_grad():
        assert error(ours(x, FRAMES), theirs(x, num_frames=FRAMES)) <= 1e-5
        assert error(x, theirs(x, num_frames=FRAMES)) > 0.1  # the residual alone would not pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("channels", "layers", "mid"),
    [
        ((32, 64), 1, True),
        ((32, 64), 2, False),  # v3 has no motion in the middle
        ((32, 32, 64, 64), 2, True),  # the levels, layers and 21 places of SD1.5
    ],
)
def test_injected_unet_equals_diffusers_motion_unet(
    thin_unet, thin_config, random_module, channels, layers, mid
):
    unet = thin_unet(channels, layers)
    motion_module = random_module(thin_config(channels, layers, mid, norm_scope="clip"))
    adapter = MotionAdapter(
        block_out_channels=channels,
        motion_layers_per_block=layers,
        motion_num_attention_heads=4,
        motion_norm_num_groups=8,
        motion_max_seq_length=16,
        use_motion_mid_block=mid,
    )
    adapter.load_state_dict(keys.to_diffusers(motion_module.state_dict()), strict=True)
    peer = UNetMotionModel.from_unet2d(unet, adapter).eval()

    clips = 2
    x = torch.randn(clips * FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    text = torch.randn(clips * FRAMES, 5, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        plain = unet(x, 499, text).sample
        inject(unet, motion_module, num_frames=FRAMES)
        ours = unet(x, 499, text).sample
        theirs = peer(x.unflatten(0, (clips, FRAMES)).transpose(1, 2), 499, text).sample
    theirs = theirs.transpose(1, 2).flatten(0, 1)
    assert error(ours, theirs) <= 1e-5
    assert error(plain, theirs) > 0.05


def test_keys_go_to_diffusers_and_back(thin_config, random_module):
    weights = random_module(thin_config()).state_dict()
    there = keys.to_diffusers(weights)
    assert len(there) == len(weights) * 27 // 28
    assert keys.layout_of(there) == "diffusers"
    assert keys.layout_of(weights) == "comfyui"
    back = keys.from_diffusers(there)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[k], weights[k]) for k in weights)


def test_unlike_position_tables_cannot_be_written_for_diffusers(thin_config, random_module):
    weights = random_module(thin_config()).state_dict()
    table = next(k for k in weights if k.endswith("attention_blocks.1.pos_encoder.pe"))
    weights[table] = weights[table] + 1
    with pytest.raises(ValueError, match="keep the comfyui layout"):
        keys.to_diffusers(weights)


# ---- against the formula -----------------------------------------------------------------------


def plain_attention(w: dict, name: str, x: torch.Tensor, key_scale: float) -> torch.Tensor:
    """Multi-head attention over frames, written out; x is (n, f, c) with 4 heads."""
    x = x + w[f"{name}.pos_encoder.pe"][:, : x.shape[1]]
    q, k, v = (
        (x @ w[f"{name}.{to}.weight"].T).reshape(*x.shape[:2], 4, -1)
        for to in ("to_q", "to_k", "to_v")
    )
    logits = torch.einsum("nfhd,nghd->nhfg", q, key_scale * k) * q.shape[-1] ** -0.5
    weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
    mixed = torch.einsum("nhfg,nghd->nfhd", weights, v).flatten(2)
    return mixed @ w[f"{name}.to_out.0.weight"].T + w[f"{name}.to_out.0.bias"]


def layer_norm(w: dict, name: str, x: torch.Tensor) -> torch.Tensor:
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def plain_transformer(w: dict, x: torch.Tensor, frames: int, key_scale: float = 1.0):
    """The temporal transformer with statistics per frame, written out; x is (b f) c h w."""
    (_, channels, height, width), groups = x.shape, 8
    grouped = x.reshape(x.shape[0], groups, -1)
    mean, var = grouped.mean(-1, keepdim=True), grouped.var(-1, keepdim=True, correction=0)
    normed = ((grouped - mean) / (var + 1e-6).sqrt()).reshape(x.shape)
    normed = normed * w["norm.weight"][:, None, None] + w["norm.bias"][:, None, None]
    h = torch.einsum("bfchw->bhwfc", normed.reshape(-1, frames, channels, height, width))
    h = h.reshape(-1, frames, channels) @ w["proj_in.weight"].T + w["proj_in.bias"]
    b = "transformer_blocks.0"
    for i in (0, 1):
        inner = layer_norm(w, f"{b}.norms.{i}", h)
        h = h + plain_attention(w, f"{b}.attention_blocks.{i}", inner, key_scale)
    inner = layer_norm(w, f"{b}.ff_norm", h)
    inner = inner @ w[f"{b}.ff.net.0.proj.weight"].T + w[f"{b}.ff.net.0.proj.bias"]
    value, gate = inner[..., : 4 * channels], inner[..., 4 * channels :]
    gated = value * gate * 0.5 * (1 + torch.erf(gate / 2**0.5))
    h = h + gated @ w[f"{b}.ff.net.2.weight"].T + w[f"{b}.ff.net.2.bias"]
    h = h @ w["proj_out.weight"].T + w["proj_out.bias"]
    h = torch.einsum("bhwfc->bfchw", h.reshape(-1, height, width, frames, channels))
    return x + h.reshape(x.shape)


@pytest.mark.parametrize("scale", [1.0, 0.5, 1.7])
def test_frame_scope_and_scaled_keys_equal_the_formula(part, x, scale):
    module = part("frame")
    expected = plain_transformer(module.state_dict(), x, FRAMES, scale)
    assert error(module(x, FRAMES, scale), expected) <= 1e-5


def test_a_nearly_flat_picture_shows_the_epsilon_of_the_norm(part, x):
    module, dim = part("frame"), 1e-3 * x
    ours, expected = module(dim, FRAMES), plain_transformer(module.state_dict(), dim, FRAMES)
    assert error(ours, expected) <= 1e-5


def test_the_two_scopes_differ_clearly(part, x):
    assert error(part("frame")(x, FRAMES), part("clip")(x, FRAMES)) > 0.02


def test_scale_one_changes_no_bit_and_others_do(part, x):
    module = part()
    assert torch.equal(module(x, FRAMES, 1.0), module(x, FRAMES))
    assert error(module(x, FRAMES, 1.5), module(x, FRAMES)) > 1e-3


def test_positions_are_sines_and_cosines_of_base_10000():
    table = temporal.sinusoidal_positions(32, 320)
    assert table.shape == (1, 32, 320)
    for position, channel in ((0, 0), (3, 0), (7, 10), (31, 318)):
        angle = position / 10000 ** (channel / 320)
        assert table[0, position, channel] == pytest.approx(math.sin(angle), abs=1e-5)
        assert table[0, position, channel + 1] == pytest.approx(math.cos(angle), abs=1e-5)


def test_frames_are_told_apart_by_their_positions(part, x):
    swapped = part()(x.unflatten(0, (2, FRAMES)).flip(1).flatten(0, 1), FRAMES)
    swapped = swapped.unflatten(0, (2, FRAMES)).flip(1).flatten(0, 1)
    assert error(swapped, part()(x, FRAMES)) > 1e-3


# ---- limits ------------------------------------------------------------------------------------


def test_attention_in_chunks_equals_attention_at_once(part, x, monkeypatch):
    calls = []
    whole = functional.scaled_dot_product_attention

    def counted(q, *rest, **options):
        calls.append(q.shape[0])
        return whole(q, *rest, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", counted)
    expected = part()(x, FRAMES, 0.5)
    assert calls == [30, 30]  # 2 clips x 5 x 3 positions
    calls.clear()
    monkeypatch.setattr(temporal, "MAX_ATTENTION_BATCH", 13)
    chunked = part()(x, FRAMES, 0.5)
    assert calls == [13, 13, 4] * 2
    torch.testing.assert_close(chunked, expected, rtol=1e-5, atol=1e-6)


def test_more_frames_than_positions_are_refused(part):
    with pytest.raises(ValueError, match=r"positions for 16 frames, not 17; .*context windows"):
        part()(torch.zeros(17, 64, 1, 1), 17)
    assert part()(torch.zeros(16, 64, 1, 1), 16).shape == (16, 64, 1, 1)


@pytest.mark.parametrize("num_frames", [5, 0, -4])
def test_a_batch_of_no_whole_clips_is_refused(part, num_frames):
    with pytest.raises(ValueError, match="batch of 12 images is not a whole number of clips"):
        part()(torch.zeros(12, 64, 1, 1), num_frames)


def test_every_weight_gets_a_gradient(part, x):
    module = part().requires_grad_(True)
    x = x.requires_grad_()
    (module(x, FRAMES) ** 2).sum().backward()
    assert x.grad.abs().sum() > 0
    for name, parameter in module.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    module.zero_grad(set_to_none=True)


def test_a_fresh_module_is_the_base_model_until_it_is_trained(thin_config, x):
    module = MotionModule(thin_config())
    assert module.initialise(torch.Generator().manual_seed(0)) is module
    part = module.temporal_transformers()[ADDRESS]
    assert torch.equal(part(x, FRAMES), x)
    (part(x, FRAMES) ** 2).sum().backward()
    assert part.proj_out.weight.grad.abs().sum() > 0


def test_half_precision_keeps_its_dtype(part, x):
    module = part()
    expected = module(x, FRAMES)
    low = module.bfloat16()(x.bfloat16(), FRAMES)
    assert low.dtype == torch.bfloat16
    assert error(low.float(), expected) < 0.02


# ---- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "parameters", "tensors", "parts"),
    [
        (MotionModuleConfig(), 453_209_280, 588, 21),
        (MotionModuleConfig(mid_block=()), 417_137_600, 560, 20),  # v3
    ],
)
def test_released_sizes(config, parameters, tensors, parts):
    with torch.device("meta"):
        module = MotionModule(config)
    assert sum(p.numel() for p in module.parameters()) == parameters
    assert len(module.state_dict()) == tensors
    assert len(keys.to_diffusers({k: torch.empty(0) for k in module.state_dict()})) == parts * 27
    assert len(module.temporal_transformers()) == len(config.addresses()) == parts
    names = [n for n, _ in module.named_parameters()]
    assert sum(n.endswith(("to_q.bias", "to_k.bias", "to_v.bias")) for n in names) == 0
    assert sum(n.endswith("to_out.0.bias") for n in names) == 2 * parts


def test_a_host_can_give_its_own_layers(thin_config):
    class Layers:
        class Linear(nn.Linear):
            pass

        class LayerNorm(nn.LayerNorm):
            pass

        class GroupNorm(nn.GroupNorm):
            pass

    leaves = [
        type(m)
        for m in MotionModule(thin_config(), Layers).modules()
        if isinstance(m, (nn.Linear, nn.LayerNorm, nn.GroupNorm))
    ]
    assert set(leaves) == {Layers.Linear, Layers.LayerNorm, Layers.GroupNorm}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 7}, "32 channels, which do not divide into 7 heads; set num_heads"),
        ({"norm_groups": 5}, "do not divide into 5 norm groups; set norm_groups"),
        ({"norm_scope": "video"}, 'norm_scope must be "frame" or "clip", not \'video\''),
        ({"max_frames": 0}, "max_frames must be at least 1, not 0"),
    ],
)
def test_impossible_configs_are_refused(thin_config, options, message):
    with pytest.raises(ValueError, match=message):
        thin_config(**options)
