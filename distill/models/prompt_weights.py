"""The syntax of prompts, read as ComfyUI reads it: `(a red fish:1.4)` and `embedding:NAME`.

Pure text; what it means for the text encoder is in prompt.py.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

BRACKETS = 1.1  # what a pair of brackets without a number multiplies a weight by
EMBEDDING = "embedding:"
_CHARACTERS = re.compile(r"\\[()]|.", re.DOTALL)  # an escaped bracket is one
_BEFORE_EMBEDDING = re.compile(rf"(?<=\s)(?={EMBEDDING})")
# the name ends at white space, at < and at [; commas behind it are text
_NAME_AND_REST = re.compile(r"\s*([^\s<\[,]*(?:,+[^\s<\[,]+)*)(,*)((?:[\s<\[].*)?)", re.DOTALL)
Characters = list[str]


@dataclass(frozen=True)
class Phrase:
    """Text of one weight, or the name of a textual inversion; 1 is the weight of plain text."""

    text: str
    weight: float = 1.0
    is_embedding: bool = False


def read_prompt(prompt: str) -> list[Phrase]:
    """Return the phrases of a prompt in their order; reads any text, and never raises.

    A textual inversion begins a phrase or follows white space; elsewhere its tag is plain text.
    """
    return [
        phrase
        for text, weight in weigh(prompt)
        for piece in _BEFORE_EMBEDDING.split(text)
        for phrase in _phrases(piece, weight)
        if phrase.text or phrase.is_embedding
    ]


def weigh(prompt: str) -> list[tuple[str, float]]:
    r"""Return the texts of a prompt, each with its weight; brackets without a partner are text.

    `(text)` multiplies the weight by 1.1, `(text:1.4)` sets it, and `\(` is a bracket of the text.
    """
    out = []
    pending = _split(_CHARACTERS.findall(prompt), 1.0)
    while pending:  # a stack and no recursion: brackets may be nested to any depth
        piece, weight = pending.pop()
        if len(piece) > 1 and (piece[0], piece[-1]) == ("(", ")"):
            pending += _split(*_unwrap(piece[1:-1], weight))
        else:
            out.append(("".join(c[-1] for c in piece), weight))
    return out


def depth(prompt: str) -> int:
    """Return how many brackets of a prompt lie within each other at most."""
    deepest = now = 0
    for character in _CHARACTERS.findall(prompt):
        now += (character == "(") - (character == ")")
        deepest = max(deepest, now)
    return deepest


def words(prompt: str) -> str:
    """Return the text of a prompt without weights, brackets and textual inversions."""
    return " ".join(phrase.text for phrase in read_prompt(prompt) if not phrase.is_embedding)


def embedding_names(prompt: str) -> list[str]:
    """Return the names of the textual inversions of a prompt, each once."""
    return list(dict.fromkeys(p.text for p in read_prompt(prompt) if p.is_embedding))


def _split(characters: Characters, weight: float) -> list[tuple[Characters, float]]:
    """Return outermost groups and the text between them, the last one first, as a stack."""
    pieces: list[Characters] = [[]]
    depth = 0  # below 0 after a closing bracket too many: the next opening one is text, too
    for character in characters:
        opens = character == "(" and depth == 0
        depth += (character == "(") - (character == ")")
        if opens:
            pieces.append([])
        pieces[-1].append(character)
        if character == ")" and depth == 0:
            pieces.append([])
    return [(piece, weight) for piece in reversed(pieces) if piece]


def _unwrap(inner: Characters, weight: float) -> tuple[Characters, float]:
    """Return what a pair of brackets holds, and its weight."""
    colons = [place for place, character in enumerate(inner) if character == ":"]
    if colons and colons[-1] > 0:
        try:
            return inner[: colons[-1]], float("".join(inner[colons[-1] + 1 :]))
        except ValueError:  # a colon of the text
            pass
    return inner, weight * BRACKETS


def _phrases(piece: str, weight: float) -> Iterator[Phrase]:
    if not piece.startswith(EMBEDDING):
        yield Phrase(piece, weight)
        return
    match = _NAME_AND_REST.fullmatch(piece.removeprefix(EMBEDDING))
    assert match is not None, "the pattern takes any text"
    name, commas, rest = match.groups()
    yield Phrase(name, weight, is_embedding=True)
    yield Phrase(f"{commas} {rest}".strip(), weight)
