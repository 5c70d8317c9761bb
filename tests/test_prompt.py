"""Prompts in ComfyUI's syntax: the parser, the chunks, the textual inversions, the embedding."""

from pathlib import Path

import pytest
import torch
from animatediff_lightning.distill.models import base_model, embedding_files, prompt
from animatediff_lightning.distill.models.embeddings import load_embeddings
from animatediff_lightning.distill.models.prompt_checks import check_syntax, list_syntax_warnings
from animatediff_lightning.distill.models.prompt_weights import (
    Phrase,
    embedding_names,
    read_prompt,
    weigh,
    words,
)
from animatediff_lightning.distill.sampling import sample
from animatediff_lightning.distill.sampling.settings import SamplingSettings
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from . import random_models

quickly = settings(max_examples=200, deadline=None, derandomize=True)
# texts full of the syntax's own characters, and any other text
tangles = st.one_of(
    st.text(),
    st.text("()\\:., a1<[\n"),
    st.lists(st.sampled_from(["(", ")", "\\(", "\\)", ":1.2)", "ab", " embedding:"])),
).map("".join)
plain = st.text(st.characters(exclude_characters="()\\", exclude_categories=("Cs",)), min_size=1)
weights = st.floats(0.01, 9.0).map(lambda weight: round(weight, 2))

# ---- the parser: what ComfyUI 0.33 returned for the same prompts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("()", []),
        ("a red fish", [("a red fish", 1)]),
        ("a (red fish:1.4) swims", [("a ", 1), ("red fish", 1.4), (" swims", 1)]),
        ("(red) ((fish))", [("red", 1.1), (" ", 1), ("fish", 1.21)]),
        ("((red:2) fish:0.5)", [("red", 2), (" fish", 0.5)]),
        ("((red) fish:0.5)", [("red", 0.55), (" fish", 0.5)]),
        (r"a \(red\) (b\):2)", [("a (red) ", 1), ("b)", 2)]),
        ("(at 10:30)", [("at 10", 30)]),
        ("(a: b)", [("a: b", 1.1)]),
        ("(:2)", [(":2", 1.1)]),
        ("(a:-0.5)", [("a", -0.5)]),
        ("(a", [("(a", 1)]),
        ("((a)", [("(a", 1.1)]),
        ("a) (b:2) c", [("a) (b:2) c", 1)]),
        (")((a:2) b", [(")(", 1), ("a", 2), (" b", 1)]),
        ("[a:b:0.5] a BREAK b", [("[a:b:0.5] a BREAK b", 1)]),
    ],
)
def test_weights_and_brackets(text, expected):
    found = weigh(text)
    assert [t for t, _ in found] == [t for t, _ in expected]
    assert [w for _, w in found] == pytest.approx([w for _, w in expected])


@quickly
@given(tangles)
def test_any_text_is_read(text):
    for phrase in read_prompt(text):
        assert isinstance(phrase.weight, float)
        assert phrase.text or phrase.is_embedding
    assert isinstance(words(text), str)
    # nothing is invented: what is read is the text without some of its brackets and weights
    rest = iter(text)
    assert all(character in rest for character in "".join(t for t, _ in weigh(text)))


@quickly
@given(plain)
def test_text_without_brackets_is_literal(text):
    assert weigh(text) == [(text, 1.0)]


@quickly
@given(st.text(min_size=1))
def test_escaped_brackets_are_literal(text):
    escaped = text.replace("\\", "").replace("(", r"\(").replace(")", r"\)")
    assert "".join(t for t, _ in weigh(escaped)) == text.replace("\\", "")
    assert all(weight == 1 for _, weight in weigh(escaped))


@quickly
@given(st.lists(st.tuples(plain, weights), max_size=6))
def test_what_is_weighted_is_read_back(pairs):
    pairs = [(text, weight) for text, weight in pairs if not text.startswith(":")]
    written = "".join(f"({text}:{weight})" for text, weight in pairs)
    assert weigh(written) == pairs


@quickly
@given(plain.filter(lambda text: ":" not in text), st.integers(1, 30))
def test_each_pair_of_brackets_multiplies(text, depth):
    ((read, weight),) = weigh("(" * depth + text + ")" * depth)
    assert read == text
    assert weight == pytest.approx(1.1**depth)


def test_brackets_may_be_nested_deeper_than_python_recurses():
    assert weigh("(" * 3000 + "a:2" + ")" * 3000) == [("a", 2.0)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("embedding:cat", [Phrase("cat", 1, True)]),
        ("a embedding:cat, b", [Phrase("a ", 1), Phrase("cat", 1, True), Phrase(",  b", 1)]),
        ("a\n(embedding:cat.pt:1.2)", [Phrase("a\n", 1), Phrase("cat.pt", 1.2, True)]),
        ("(embedding:a embedding:b)", [Phrase("a", 1.1, True), Phrase("b", 1.1, True)]),
        ("embedding: cat", [Phrase("cat", 1, True)]),
        ("embedding:cat[b] c", [Phrase("cat", 1, True), Phrase("[b] c", 1)]),
        ("embedding:", [Phrase("", 1, True)]),
        ("a,embedding:cat", [Phrase("a,embedding:cat", 1)]),
    ],
)
def test_textual_inversions_are_named(text, expected):
    assert [(p.text, pytest.approx(p.weight), p.is_embedding) for p in expected] == [
        (p.text, p.weight, p.is_embedding) for p in read_prompt(text)
    ]


def test_words_and_names():
    text = "a (red:1.4) fish embedding:glow, (embedding:glow:2)"
    assert words(text).split() == ["a", "red", "fish", ","]
    assert embedding_names(text) == ["glow"]


# ---- what is refused, and what is warned of


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "embeddings"
    (folder / "sub").mkdir(parents=True)
    vectors = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    save_file({"emb_params": vectors}, folder / "glow.safetensors")
    torch.save({"string_to_param": {"*": vectors + 1}, "name": "a1111"}, folder / "a1111.pt")
    torch.save({"<token>": vectors[0]}, folder / "sub" / "token.bin")
    save_file({"clip_g": torch.zeros(2, 80), "clip_l": vectors + 2}, folder / "xl.safetensors")
    save_file({"emb_params": torch.zeros(2, 1024)}, folder / "sd2.safetensors")
    save_file({"a": vectors, "b": vectors + 1}, folder / "two.safetensors")
    (folder / "damaged.pt").write_bytes(b"PK")
    save_file({"emb_params": vectors}, tmp_path / "outside.safetensors")
    return folder


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a <lora:detail:0.8>", r"<lora:detail:0.8> .*image LoRA.*--motion-lora FILE:0.8\."),
        ("(a:nan)", "the weight nan of 'a' in a prompt is not a finite number"),
        ("embedding:glo", "glo in a prompt was not found in .*; did you mean 'glow'.* holds a1111"),
        ("embedding:", "names no file; write embedding:NAME"),
        ("embedding:../outside", "leads out of"),
        ("embedding:/etc/passwd", "leads out of"),
        ("embedding:.", "leads out of"),
        ("embedding:sub/..", "leads out of"),
        ("embedding:" + "x" * 5000, "was not found in"),
        ("embedding:a\0b", "was not found in"),
        ("embedding:sub/../../outside", "leads out of"),
    ],
)
def test_what_cannot_be_meant_is_refused(folder, text, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        check_syntax(text, folder)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_name_stays_within_the_folder_of_the_shell(folder, monkeypatch):
    monkeypatch.chdir(folder)
    here = Path()
    assert embedding_files.find(here, "glow").samefile(folder / "glow.safetensors")
    for name in ("../outside", ".", "../embeddings/glow/../../outside"):
        with pytest.raises(ValueError, match="leads out of"):
            embedding_files.find(here, name)


def test_textual_inversions_need_their_folder(tmp_path):
    with pytest.raises(ValueError, match=r"embedding:glow, but there is no folder .*--embeddings"):
        check_syntax("a embedding:glow", None)
    with pytest.raises(ValueError, match="is not a folder"):
        embedding_files.check_folder(tmp_path / "none")
    with pytest.raises(ValueError, match=r"not found in .*; the folder holds no embedding\."):
        embedding_files.find(tmp_path, "glow")


def test_what_is_plain_text_is_told_once():
    break_, inside = list_syntax_warnings(["a BREAK b", "BREAK", "a,embedding:glow"])
    assert "BREAK is an ordinary word" in break_
    assert "put a space before it" in inside
    assert list_syntax_warnings(["break a leg", "a embedding:glow"]) == []


# ---- textual inversions


def test_textual_inversions_are_read_in_every_layout(folder):
    vectors = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    names = ["glow", "glow.safetensors", "a1111", "token", "sub/token.bin", "xl"]
    got = load_embeddings(folder, names, 64)
    expected = (vectors, vectors, vectors + 1, vectors[:1], vectors[:1], vectors + 2)
    for name, tensor in zip(names, expected, strict=True):
        assert torch.equal(got[name], tensor), name
    assert load_embeddings(None, [], 64) == {}


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("sd2", "sd2.safetensors has vectors of 1024 numbers, but .* reads 64"),
        ("two", "two.safetensors is not a textual inversion: it holds 2 tensors"),
        ("damaged", "the embedding damaged.pt is "),
    ],
)
def test_other_files_are_refused(folder, name, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        load_embeddings(folder, [name], 64)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


# ---- chunks and the embedding


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_model.load_base(random_models.ensure(tmp_path_factory.mktemp("cache")).base)


def ids_of(base, text):
    return base.tokenizer(text).input_ids[1:-1]


@torch.no_grad()
def by_hand(base, chunks, vectors=()):
    """Encode lists of token ids; an id past the vocabulary is one of `vectors`."""
    encoder, size = base.text_encoder, base.text_encoder.config.vocab_size
    start, end = base.tokenizer.bos_token_id, base.tokenizer.eos_token_id
    ids = torch.full((len(chunks), 77), end)
    ids[:, 0] = start
    for row, chunk in zip(ids, chunks, strict=True):
        row[1 : len(chunk) + 1] = torch.tensor(chunk)
    table = encoder.get_input_embeddings()
    before = table.weight
    table.weight = torch.nn.Parameter(torch.cat([before, *vectors]))
    assert ids.max() < size + sum(map(len, vectors))
    states = encoder(ids).last_hidden_state
    table.weight = before
    return states


def test_a_plain_prompt_is_the_literal_one(base):
    plain = base_model.encode_prompt(base, "a red fish")
    got = prompt.encode_weighted(base, ["a red fish"])
    torch.testing.assert_close(got, plain, rtol=1e-5, atol=1e-6)


def test_weights_move_along_the_line_from_the_empty_prompt(base):
    text, empty = by_hand(base, [ids_of(base, "a red fish"), []])
    expected = text.clone()
    places = slice(2, 5)  # r, e, d: the tokenizer of the random model reads byte by byte
    expected[places] = empty[places] + 1.4 * (text[places] - empty[places])
    got = prompt.encode_weighted(base, ["a (red:1.4) fish"])
    torch.testing.assert_close(got[0], expected, rtol=1e-5, atol=1e-5)


def test_a_long_prompt_is_read_in_chunks(base):
    text = "x" * 100
    ids = ids_of(base, text)
    expected = by_hand(base, [ids[:75], ids[75:]]).flatten(0, 1)
    got = prompt.encode_weighted(base, [text])
    assert got.shape == (1, 154, 64)
    torch.testing.assert_close(got[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("", [0]),
        ("x" * 75, [75]),
        ("x" * 76, [75, 1]),
        ("x" * 70 + "(" + "y" * 7 + ")", [70, 7]),  # a short phrase moves on whole
        ("x" * 70 + "(" + "y" * 8 + ")", [75, 3]),  # a longer one is torn
        ("x" * 75 + "(y)", [75, 1]),
        ("x" * 160, [75, 75, 10]),
    ],
)
def test_where_chunks_end(base, text, lengths):
    assert [len(chunk) for chunk in prompt.prompt_chunks(base, text)] == lengths


def test_textual_inversions_take_the_place_of_tokens(base):
    size = base.text_encoder.config.vocab_size
    glow = torch.randn(2, 64)
    a, b = ids_of(base, "a"), ids_of(base, "b")
    text, empty = by_hand(base, [[*a, size, size + 1, *b, size, size + 1], []], [glow])
    expected = text.clone()
    expected[5:7] = empty[5:7] + 0.5 * (text[5:7] - empty[5:7])
    words_before = base.text_encoder.get_input_embeddings().weight.clone()
    got = prompt.encode_weighted(base, ["a embedding:glow b (embedding:glow:0.5)"], {"glow": glow})
    torch.testing.assert_close(got[0], expected, rtol=1e-5, atol=1e-5)
    # the text encoder is left as it was
    assert torch.equal(base.text_encoder.get_input_embeddings().weight, words_before)
    assert not base.text_encoder.get_input_embeddings()._forward_hooks


def test_prompts_of_other_lengths_are_repeated_to_one(base):
    short, long = "a cat", "x" * 100
    both = prompt.encode_weighted(base, [short, long])
    assert both.shape == (2, 154, 64)
    alone = prompt.encode_weighted(base, [short])
    torch.testing.assert_close(both[:1], alone.repeat(1, 2, 1))


def test_guidance_takes_a_negative_prompt_of_another_length(base):
    """The repeated text changes nothing: the noise is that of two runs alone."""
    x = torch.randn(1, 4, 8, 8)
    short, long = "a cat", "(x:1.3)" + "y" * 80
    options = {"frames": 1, "width": 64, "height": 64}
    guided = SamplingSettings(**options, cfg=3.0, negative_prompt=long)
    encode = prompt.encode_weighted
    with torch.inference_mode():
        got = sample.eps_predictor(base, [short], guided, encode)(x, 499)
        wanted, unwanted = (
            sample.eps_predictor(base, [text], SamplingSettings(**options), encode)(x, 499)
            for text in (short, long)
        )
    torch.testing.assert_close(got, unwanted + 3 * (wanted - unwanted), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(wanted, unwanted, atol=1e-3)


def test_captions_stay_literal(base):
    assert not torch.allclose(
        base_model.encode_prompt(base, "a (red:1.4) fish"),
        prompt.encode_weighted(base, ["a (red:1.4) fish"]),
        atol=1e-2,
    )
