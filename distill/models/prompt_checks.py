"""What can be wrong with the syntax of a user's prompt, told before anything heavy is read."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

from . import embedding_files
from .prompt_weights import EMBEDDING, depth, embedding_names, read_prompt

_LORA = re.compile(r"<(?:lora|lyco):[^<>]*>", re.IGNORECASE)
_LONGEST, _DEEPEST = 20_000, 100  # each pair of brackets is read anew
_BREAK = re.compile(r"\bBREAK\b")


def check_syntax(prompt: str, embeddings: Path | None) -> None:
    """Raise ValueError, with one sentence, for a prompt that cannot be meant as it stands.

    embeddings: the folder of textual inversions, where each one that the prompt names must lie.
    """
    if len(prompt) > _LONGEST or depth(prompt) > _DEEPEST:
        raise ValueError(
            f"a prompt has {len(prompt)} characters and brackets {depth(prompt)} deep; at most "
            f"{_LONGEST} characters and {_DEEPEST} brackets within each other are read."
        )
    lora = _LORA.search(prompt)
    if lora:
        raise ValueError(
            f"{lora[0]} in a prompt is the tag of an image LoRA, which this program does not read; "
            "remove it, or give a motion LoRA with --motion-lora FILE:0.8."
        )
    for phrase in read_prompt(prompt):
        if not math.isfinite(phrase.weight):
            raise ValueError(
                f"the weight {phrase.weight} of {phrase.text!r} in a prompt is not a finite "
                "number; use one such as 1.2."
            )
    for name in embedding_names(prompt):
        if embeddings is None:
            raise ValueError(
                f"a prompt names {EMBEDDING}{name}, but there is no folder of textual inversions; "
                "give it with --embeddings FOLDER."
            )
        embedding_files.find(embeddings, name)


def list_syntax_warnings(prompts: Sequence[str]) -> list[str]:
    """Return a sentence, once, for each thing that prompts hold and that is read as plain text."""
    texts = [p.text for prompt in prompts for p in read_prompt(prompt) if not p.is_embedding]
    out = []
    if any(_BREAK.search(text) for text in texts):
        out.append(
            "BREAK is an ordinary word in a prompt here, as in ComfyUI; it begins no new chunk."
        )
    if any(EMBEDDING in text for text in texts):
        out.append(
            f"{EMBEDDING} inside a word of a prompt is plain text here, as in ComfyUI; put a space "
            "before it."
        )
    return out
