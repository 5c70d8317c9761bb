"""Finds the CLIP tokenizer: in a folder, in the hub's local cache, or on the hub."""

from pathlib import Path

from huggingface_hub import snapshot_download
from transformers import CLIPTokenizer

from ..library_errors import one_sentence
from .sd15_config import HUB_TOKENIZER


def load_tokenizer(folder: str | Path | None) -> CLIPTokenizer:
    """Load from a folder, or SD1.5's own where it is None; ValueError where there is none."""
    if folder is None:
        folder = _hub_tokenizer()
    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json")):
        raise ValueError(f"{folder} holds no tokenizer; it needs vocab.json and merges.txt.")
    with one_sentence(str(folder)):
        return CLIPTokenizer.from_pretrained(folder)


def _hub_tokenizer() -> str:
    # one snapshot fails at once where the tokenizer's own loader would retry for minutes
    try:
        return snapshot_download(
            HUB_TOKENIZER, allow_patterns=["vocab.json", "merges.txt", "*_config.json"]
        )
    except Exception as error:  # the hub's errors differ among its versions
        raise ValueError(
            "the CLIP tokenizer is not cached here and the hub cannot be reached; pass "
            "--tokenizer DIR, or tokenizer in the slots of a config, with vocab.json and "
            "merges.txt (ComfyUI has it in comfy/sd1_tokenizer)."
        ) from error
