"""What a node asks of the host while a prompt runs: memory, cancel, noise, warnings on the node."""

import logging

import comfy.model_management
import comfy.sample
import torch
from comfy_execution.utils import get_executing_context

WARNING = "animatediff_lightning.warning"  # the event that web/warnings.js listens to


def free_memory() -> int:
    """Return the bytes of main memory that the host may still use."""
    return comfy.model_management.get_free_memory(torch.device("cpu"))


def stop_if_cancelled() -> None:
    """Raise the host's own exception where the user has pressed cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def core_noise(samples: torch.Tensor, seed: int, frames: list[int] | None = None) -> torch.Tensor:
    """Return the noise that Random Noise makes for latents; `frames` picks from a longer clip."""
    return comfy.sample.prepare_noise(samples, seed, frames)


_told: dict[str, tuple[str, list[str]]] = {}  # by node: the prompt that ran, what it was told


def tell(*found: str | None) -> None:
    """Tell the user what checks found: in the log, and on the running node where a server listens.

    What the node was told in an earlier prompt goes, also when there is nothing to tell now.
    """
    sentences = [_capitalised(sentence) for sentence in found if sentence]
    for sentence in sentences:
        logging.warning("[AnimateDiff-Lightning] %s", sentence)
    running = get_executing_context()
    if running is None:
        return
    from server import PromptServer  # the headless host has no server to import

    if getattr(PromptServer, "instance", None) is None:
        return
    prompt, before = _told.pop(running.node_id, ("", []))
    kept = before if prompt == running.prompt_id else []  # a node may run several times in one
    shown = list(dict.fromkeys(kept + sentences))
    if shown:
        _told[running.node_id] = running.prompt_id, shown
    if shown or before:  # one text replaces the other; the frontend ignores an empty one
        server, text = PromptServer.instance, " ".join(shown)
        server.send_progress_text(text or " ", running.node_id)
        # newer frontends drop that text when the run is over; web/warnings.js shows this one
        server.send_sync(WARNING, {"node": running.node_id, "text": text}, server.client_id)


def _capitalised(sentence: str) -> str:
    """Return a sentence with a capital letter, unless it begins with the name of a file."""
    is_word = sentence.partition(" ")[0].isalpha()
    return sentence[0].upper() + sentence[1:] if is_word else sentence
