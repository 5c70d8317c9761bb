"""Encodes prompts as ComfyUI does: in chunks, with weights, with textual inversions.

A weight moves a token's hidden state along the line from the empty prompt's to its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...samplers.text_length import to_common_length
from .base_model import BaseModel
from .prompt_weights import read_prompt

Embeddings = Mapping[str, Tensor]  # vectors (tokens, width) by the name in the prompt
NO_EMBEDDINGS: Embeddings = MappingProxyType({})
_TORN = 8  # tokens from which on a phrase is torn where a chunk ends, instead of moved on


class WeightedToken(NamedTuple):
    """A token's id, or the vector (width,) that takes a token's place, and its weight."""

    token: int | Tensor
    weight: float = 1.0


Chunk = list[WeightedToken]


def encode_weighted(
    base: BaseModel, prompts: Sequence[str], embeddings: Embeddings = NO_EMBEDDINGS
) -> Tensor:
    """Return the embedding of prompts in ComfyUI's syntax, (prompts, chunks x tokens, width).

    A chunk has the encoder's length, SD1.5: 77. Prompts of fewer chunks are repeated.
    """
    texts = [_encode(base, prompt_chunks(base, p, embeddings)) for p in prompts]
    return torch.cat(to_common_length(texts))


def prompt_chunks(
    base: BaseModel, prompt: str, embeddings: Embeddings = NO_EMBEDDINGS
) -> list[Chunk]:
    """Return the tokens of a prompt by chunks, without start, end and padding."""
    phrases: list[Chunk] = []
    for phrase in read_prompt(prompt):
        tokens: Sequence[int | Tensor] = (
            list(embeddings[phrase.text])
            if phrase.is_embedding
            else base.tokenizer(phrase.text, verbose=False).input_ids[1:-1]
        )
        phrases.append([WeightedToken(token, phrase.weight) for token in tokens])
    return _fill_chunks(phrases, base.max_tokens - 2)


def _fill_chunks(phrases: Sequence[Chunk], size: int) -> list[Chunk]:
    """Return chunks of at most `size` tokens; a short phrase moves on rather than be torn."""
    chunks: list[Chunk] = [[]]
    for phrase in phrases:
        is_torn = len(phrase) >= min(_TORN, size)
        rest = phrase
        while len(chunks[-1]) + len(rest) > size:
            room = size - len(chunks[-1]) if is_torn else 0
            chunks[-1] += rest[:room]
            chunks.append([])
            rest = rest[room:]
        chunks[-1] += rest
    return chunks


@torch.no_grad()
def _encode(base: BaseModel, chunks: Sequence[Chunk]) -> Tensor:
    states = _hidden_states(base, [*chunks, []])
    text, empty = states[:-1], states[-1:]
    weights = torch.ones(text.shape[:2])
    for row, chunk in zip(weights, chunks, strict=True):
        row[1 : len(chunk) + 1] = torch.tensor([token.weight for token in chunk])
    # in float32, whatever the encoder computes in; at weight 1 lerp is the text to the bit
    weighted = torch.lerp(empty, text, weights[..., None].to(text))
    return weighted.flatten(0, 1)[None].to(base.dtype)  # 1 (chunks tokens) width


def _hidden_states(base: BaseModel, chunks: Sequence[Chunk]) -> Tensor:
    """Return the last hidden states behind the final norm, (chunks, tokens, width), in float32."""
    words = base.tokenizer
    ids = torch.full((len(chunks), base.max_tokens), words.pad_token_id)
    ids[:, 0] = words.bos_token_id
    vectors = {}
    for row, chunk in enumerate(chunks):
        for place, (token, _) in enumerate(chunk, start=1):
            if isinstance(token, Tensor):
                vectors[row, place] = token
            else:
                ids[row, place] = token
        ids[row, len(chunk) + 1] = words.eos_token_id
    with _replacing(base.text_encoder.get_input_embeddings(), vectors):
        return base.text_encoder(ids.to(base.device)).last_hidden_state.float()


@contextmanager
def _replacing(
    token_embedding: nn.Module, vectors: Mapping[tuple[int, int], Tensor]
) -> Iterator[None]:
    """Put vectors in the place of looked-up ones, by row and place, for a while."""

    def replace(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        output = output.clone()
        for place, vector in vectors.items():
            output[place] = vector.to(output)
        return output

    hook = token_embedding.register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()
