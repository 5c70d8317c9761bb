"""Turns what diffusers, transformers and safetensors raise on a bad file into one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

import safetensors

_LIBRARY_ERRORS = (OSError, ValueError, RuntimeError, KeyError, safetensors.SafetensorError)


@contextmanager
def one_sentence(name: str) -> Iterator[None]:
    """Reraise a library's error on the file or folder `name` as ValueError with its first line."""
    try:
        yield
    except _LIBRARY_ERRORS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(
            f"{name} could not be read ({reason}); it is damaged, or is not an SD1.5 base model."
        ) from error
