"""Reads textual inversions (arXiv 2208.01618): vectors that stand for tokens of a prompt."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ...motion_module import content, files, pickles
from . import embedding_files

_NAMES = ("clip_l", "emb_params")  # of SDXL's first text encoder, and of trainers
_MOST_VECTORS = 1000  # of one textual inversion; a chunk of a prompt holds 75


def load_embeddings(folder: Path | None, names: Sequence[str], width: int) -> dict[str, Tensor]:
    """Return the vectors (tokens, width) of textual inversions by name, in float32.

    width: of the text encoder. Raises ValueError, with one sentence, for a file that is missing,
    damaged, made for another text encoder, or no textual inversion.
    """
    assert folder is not None or not names, "check_syntax refuses names without a folder"
    return {name: _load(embedding_files.find(folder, name), width) for name in names if folder}


def _load(path: Path, width: int) -> Tensor:
    vectors = _pick(_read(path), path)
    if not 0 < vectors.numel() // max(1, vectors.shape[-1]) <= _MOST_VECTORS:
        raise ValueError(
            f"the embedding {path.name} is not a textual inversion: its vectors have the shape "
            f"{tuple(vectors.shape)}; give another file."
        )
    vectors = vectors.detach().float().reshape(-1, vectors.shape[-1])
    if vectors.shape[-1] != width:
        raise ValueError(
            f"the embedding {path.name} has vectors of {vectors.shape[-1]} numbers, but this base "
            f"model's text encoder reads {width}; use one that was made for the same base model "
            "(SD1.5: 768)."
        )
    if not vectors.isfinite().all():
        raise ValueError(f"the embedding {path.name} holds NaN or infinity; download it again.")
    return vectors


def _read(path: Path) -> dict[str, object]:
    try:
        content.check_content(path)
        if path.suffix.lower() == ".safetensors":
            return dict(files.read(path)[0])
        # not files.read, which takes flat dicts only: AUTOMATIC1111's vectors lie one level deeper
        return pickles.read(path)
    except content.CheckpointError as error:
        raise ValueError(f"the embedding {path.name} {error}.") from error


def _pick(holds: dict[str, object], path: Path) -> Tensor:
    """Return the vectors among what the file of a textual inversion holds."""
    nested = holds.get("string_to_param")
    if isinstance(nested, dict):
        holds = nested
    tensors = {key: t for key, t in holds.items() if isinstance(t, Tensor) and t.ndim in (1, 2)}
    named = [tensors[name] for name in _NAMES if name in tensors]
    if not named and len(tensors) != 1:
        raise ValueError(
            f"{path.name} is not a textual inversion: it holds {len(tensors)} tensors that could "
            "be its vectors, where one is expected; give another file."
        )
    return (named or list(tensors.values()))[0]
