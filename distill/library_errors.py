"""Turns what the libraries raise on a bad file into one sentence that names the file.

What diffusers, transformers, safetensors and others raise differs from version to version, so any
Exception of theirs is caught, around the one call that reads the file.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# they tell of this machine, not of the file
_NOT_OF_THE_FILE = (torch.OutOfMemoryError, MemoryError)
_NO_BASE_MODEL = "it is damaged, or is not an SD1.5 base model"


@contextmanager
def one_sentence(name: str, advice: str = _NO_BASE_MODEL) -> Iterator[None]:
    """Reraise a library's error on the file or folder `name` as ValueError with its first line.

    advice: the end of the sentence.
    """
    try:
        yield
    except _NOT_OF_THE_FILE:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(f"{name} could not be read ({reason}); {advice}.") from error
