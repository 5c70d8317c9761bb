"""The miniature's world: captions, held-out ones, and pixels that can be measured again."""

import pytest
import torch
from animatediff_lightning.distill.miniature import measure, metrics, render, split, styles, world

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scenes():
    return split.draw_scenes(96, torch.Generator().manual_seed(3))


def true(scenes, style):
    return render.render(scenes, styles.STYLES[style], torch.Generator().manual_seed(4))


def share(found, wanted):
    return (found == wanted).float().mean().item()


@pytest.mark.parametrize("style", styles.STYLES)
def test_every_factor_is_measured_again_in_true_clips(scenes, style):
    found = measure.measure(true(scenes, style))
    assert share(found.colour, scenes.colour) == 1
    assert share(found.motion, scenes.direction) == 1
    assert share(found.heading, scenes.direction) >= 0.98
    assert share(found.kind, scenes.kind) >= 0.9
    assert share(found.size, scenes.size) >= 0.85
    assert share(found.style, list(styles.STYLES).index(style)) == 1
    assert measure.follows_path(found, scenes).all()
    assert found.jerk.mean() < 0.35


def test_a_single_frame_tells_the_heading(scenes):
    found = measure.measure(true(scenes, "plain")[:, 7:8].expand(-1, 3, -1, -1, -1))
    assert share(found.heading, scenes.direction) == 1


def test_shuffled_and_still_clips_have_no_motion(scenes):
    clips = true(scenes, "plain")
    order = torch.randperm(world.FRAMES, generator=torch.Generator().manual_seed(0))
    for broken in (clips[:, order], clips[:, :1].expand_as(clips)):
        found = measure.measure(broken)
        assert share(found.motion, scenes.direction) <= 0.25
        assert measure.follows_path(found, scenes).float().mean() <= 0.1
    assert measure.measure(clips[:, order]).jerk.mean() > 2


def test_a_clip_played_backwards_goes_the_other_way_and_faces_backwards(scenes):
    found = measure.measure(true(scenes, "toon").flip(1))
    opposite = torch.tensor([1, 0, 3, 2])[scenes.direction]
    assert share(found.motion, opposite) == 1
    assert share(found.heading, found.motion) == 0


def test_blank_clips_show_nothing():
    found = measure.measure(torch.zeros(2, world.FRAMES, 3, world.SIZE, world.SIZE))
    for factor in (found.colour, found.kind, found.size, found.heading, found.motion):
        assert (factor == -1).all()


def test_sprites_stay_in_the_frame_and_birds_fly_curves(scenes):
    centres = scenes.centres()
    assert centres.min() >= world.MARGIN - 1e-4
    assert centres.max() <= world.SIZE - world.MARGIN + 1e-4
    bird = scenes.kind == list(world.KINDS).index("bird")
    bend = centres.diff(n=2, dim=1).norm(dim=-1).amax(1)
    assert (bend[bird] > 0.1).all()
    assert (bend[~bird] < 1e-4).all()


def test_styles_change_no_dynamics(scenes):
    plain = measure.measure(true(scenes, "plain")).centres
    for style in ("photo", "neon", "wood"):
        assert (measure.measure(true(scenes, style)).centres - plain).norm(dim=-1).mean() < 0.6


def test_captions_say_what_is_seen():
    assert world.caption(0, 0, 0) == "a red fish swimming left"
    assert world.caption(2, 1, 3, size=1) == "a big green bird flying down"


def test_scenes_are_drawn_from_their_seed():
    first, again, other = (
        split.draw_scenes(50, torch.Generator().manual_seed(s)).start for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_single_moment_is_that_frame_of_the_clip(scenes):
    moment = torch.arange(len(scenes)) % world.FRAMES
    clips = true(scenes, "photo")
    stills = render.render(scenes, styles.STYLES["photo"], torch.Generator().manual_seed(4), moment)
    assert torch.allclose(stills[:, 0], clips[torch.arange(len(scenes)), moment], atol=1e-6)


def test_unknown_words_are_named_and_near_ones_found():
    assert world.unknown_words("A red dog, swiming left! red dog") == ["dog", "swiming"]
    assert world.nearest_word("swiming") == "swimming"
    assert world.unknown_words("") == []


def test_ceiling_and_chance_bound_what_can_be_reached():
    scenes = metrics.held_out_scenes(150)
    ceiling, chance = metrics.ceiling(scenes, "plain"), metrics.chance(scenes, "plain")
    assert all(ceiling[name] >= 0.98 for name in metrics.SHARES)
    expected = {"colour": 1 / 6, "kind": 1 / 3, "motion": 1 / 4, "heading": 1 / 4, "style": 1 / 9}
    for name, share_by_luck in expected.items():
        assert chance[name] == pytest.approx(share_by_luck, abs=0.12)
    assert chance["strict"] < 0.25
