"""Prompt travel: what a script says, and what each frame takes of each prompt."""

import pytest
import torch
from animatediff_lightning.samplers.travel import Keyframe, blend, keyframe_weights, parse
from hypothesis import given, settings
from hypothesis import strategies as st

quickly = settings(max_examples=200, deadline=None, derandomize=True)
# one line that says something: no break of str.splitlines, no white space around it
prompts = (
    st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1)
    .map(str.strip)
    .filter(bool)
)
scripts = st.dictionaries(st.integers(0, 47), prompts, min_size=1, max_size=8)


def test_lines_are_read_in_the_order_of_frames():
    script = "\n  8 : snow, (deep:1.2)\n\n0: a meadow\r\n15:night\n"
    assert parse(script, 16) == [
        Keyframe(0, "a meadow"),
        Keyframe(8, "snow, (deep:1.2)"),
        Keyframe(15, "night"),
    ]


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("0: a\nsnow", "line 2: no colon between frame and prompt"),
        ("0: a\n\nsnow (deep:1.2)", r"line 3: 'snow \(deep' is not a frame number"),
        ('"0": a', "line 1: '\"0\"' is not a frame number"),
        ("1.5: a", "line 1: '1.5' is not a frame number"),
        (": a", "line 1: '' is not a frame number"),
        ("0: a\n16: b", "line 2: frame 16 is outside the clip of 16 frames; use 0 to 15"),
        ("-1: a", "line 1: frame -1 is outside"),
        ("0: a\n4: b\n0: c", "line 3: frame 0 has a prompt already, in line 1"),
        ("0: a\n00: c", "line 2: frame 0 has a prompt already, in line 1"),
        ("0: a\n8:  ", "line 2: no prompt after the colon"),
        ("", "there is no prompt; write for example"),
        (" \n\n", "there is no prompt; write for example"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(script, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        parse(script, 16)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


@quickly
@given(scripts, st.randoms(use_true_random=False), st.sampled_from(["\n", "\n\n", " \r\n"]))
def test_what_is_written_in_any_order_is_read_back(script, random, line_end):
    lines = [f" {frame}: {prompt}" for frame, prompt in script.items()]
    random.shuffle(lines)
    keyframes = parse(line_end.join(lines), 48)
    assert keyframes == [Keyframe(frame, script[frame]) for frame in sorted(script)]


@quickly
@given(st.one_of(st.text(), st.text("01259-:: ab\n\u0664\u00b2")), st.integers(1, 64))
def test_any_script_is_read_or_refused_in_one_sentence(script, num_frames):
    try:
        keyframes = parse(script, num_frames)
    except ValueError as error:
        sentence = str(error)
        keyframes = []
    if not keyframes:
        assert sentence.endswith(".")
        assert len(sentence.splitlines()) == 1
        return
    frames = [keyframe.frame for keyframe in keyframes]
    assert frames == sorted(set(frames))
    assert all(0 <= frame < num_frames for frame in frames)
    assert all(k.text == k.text.strip() != "" for k in keyframes)
    assert len(keyframes) == sum(1 for line in script.splitlines() if line.strip())


@quickly
@given(scripts, st.sampled_from(["linear", "step"]))
def test_weights_of_any_keyframes_sum_to_one(script, interpolation):
    frames = sorted(script)
    weights = keyframe_weights(frames, 48, interpolation)
    assert bool((weights >= 0).all())
    torch.testing.assert_close(weights.sum(1), torch.ones(48))
    assert torch.equal(weights[frames], torch.eye(len(frames)))


def test_linear_weights():
    weights = keyframe_weights([2, 6], 9)
    expected = torch.tensor([0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1])
    torch.testing.assert_close(weights[:, 1], expected)
    torch.testing.assert_close(weights.sum(1), torch.ones(9))


def test_step_weights():
    weights = keyframe_weights([0, 3, 5], 7, "step")
    assert weights.argmax(1).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert set(weights.flatten().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("frames", [[0], [7], [0, 7], [0, 1, 2, 7], [3, 4]])
@pytest.mark.parametrize("interpolation", ["linear", "step"])
def test_a_keyframe_shows_its_prompt_alone(frames, interpolation):
    weights = keyframe_weights(frames, 8, interpolation)
    assert torch.equal(weights[frames], torch.eye(len(frames)))
    torch.testing.assert_close(weights.sum(1), torch.ones(8))


def embedding(tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(1, tokens, 8, generator=torch.Generator().manual_seed(seed))


def test_keyframes_blend_bit_exactly_and_between_them_evenly():
    a, b = embedding(77, 0), embedding(77, 1)
    mixed = blend([a, b], keyframe_weights([0, 4], 5))
    assert mixed.shape == (5, 77, 8)
    assert torch.equal(mixed[:1], a)
    assert torch.equal(mixed[4:], b)
    torch.testing.assert_close(mixed[1:2], 0.75 * a + 0.25 * b)


def test_half_precision_stays():
    mixed = blend([embedding(7, 0).half()] * 2, keyframe_weights([0, 4], 5))
    assert mixed.dtype == torch.float16


def test_a_longer_prompt_changes_nothing_that_attention_reads():
    short, middle, long = embedding(77, 0), embedding(154, 1), embedding(231, 2)
    mixed = blend([short, middle, long], keyframe_weights([0, 1, 2], 3))
    assert mixed.shape == (3, 462, 8)
    query = embedding(5, 3)
    attention = torch.nn.functional.scaled_dot_product_attention
    for frame, plain in enumerate([short, middle, long]):
        got = attention(query, mixed[frame : frame + 1], mixed[frame : frame + 1])
        torch.testing.assert_close(got, attention(query, plain, plain), rtol=1e-5, atol=1e-6)
