"""Which frame's noise each frame takes: FreeNoise's promises, and the simpler kinds."""

import pytest
import torch
from animatediff_lightning.samplers.noise import MODES, noise_sources


@pytest.mark.parametrize("mode", ["freenoise", "repeated", "independent"])
@pytest.mark.parametrize("frames", [1, 7, 16])
def test_the_first_window_keeps_its_noise(mode, frames):
    assert torch.equal(noise_sources(frames, mode), torch.arange(frames))


@pytest.mark.parametrize("frames", [16, 17, 33, 40, 64, 128])
@pytest.mark.parametrize(("length", "overlap"), [(16, 4), (16, 8), (8, 2), (16, 0), (4, 3)])
def test_freenoise_uses_each_noise_once_a_window(frames, length, overlap):
    sources = noise_sources(frames, "freenoise", length, overlap, seed=3)
    assert sources.shape == (frames,)
    assert torch.equal(sources[:length], torch.arange(min(frames, length)))
    stride = length - overlap
    for start in range(0, frames - length + 1, stride):
        window = sources[start : start + length]
        assert sorted(window.tolist()) == list(range(length))


def test_freenoise_shuffles_within_the_stride_only():
    sources = noise_sources(64, "freenoise", 16, 4, seed=1)
    for place in range(16, 64, 12):
        count = min(12, 64 - place)
        before = sources[place - 16 : place - 16 + count]
        assert sorted(sources[place : place + count].tolist()) == sorted(before.tolist())
    assert not torch.equal(sources[16:28], sources[:12])


def test_a_last_stretch_that_is_cut_short_repeats_no_noise_in_its_window():
    """With a stretch of 5 in place of 12, the last window still has 16 different noises."""
    sources = noise_sources(45, "freenoise", 16, 4, seed=2)
    assert len(set(sources[-16:].tolist())) == 16


def test_freenoise_depends_on_its_seed_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = noise_sources(64, seed=7)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was touched"
    assert torch.equal(noise_sources(64, seed=7), first)
    assert not torch.equal(noise_sources(64, seed=8), first)


def test_repeated_and_constant():
    assert noise_sources(10, "repeated", context_length=4).tolist() == [0, 1, 2, 3] * 2 + [0, 1]
    assert noise_sources(5, "constant").tolist() == [0] * 5
    assert noise_sources(40, "independent").tolist() == list(range(40))


@pytest.mark.parametrize("overlap", [16, 20])
def test_windows_that_do_not_advance_are_refused(overlap):
    with pytest.raises(ValueError, match="below context_length"):
        noise_sources(40, "freenoise", 16, overlap)
    for mode in set(MODES) - {"freenoise"}:
        noise_sources(40, mode, 16, overlap)


def test_an_unknown_mode_is_named():
    with pytest.raises(ValueError, match="'pink' is unknown; use one of freenoise"):
        noise_sources(16, "pink")
