"""What a node asks of the host while a prompt runs: memory, cancel, noise, warnings on the node."""

import logging

import comfy.model_management
import comfy.sample
import torch
from comfy_execution.utils import get_executing_context

WARNING_EVENT = "animatediff_lightning.warning"  # web/warnings.js listens to it


def get_free_memory() -> int:
    """Return the bytes of main memory that the host may still use."""
    return comfy.model_management.get_free_memory(torch.device("cpu"))


def raise_if_cancelled() -> None:
    """Raise the host's own exception where the user has pressed cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def make_core_noise(
    samples: torch.Tensor, seed: int, frames: list[int] | None = None
) -> torch.Tensor:
    """Return the noise that Random Noise makes for latents; `frames` picks from a longer clip."""
    return comfy.sample.prepare_noise(samples, seed, frames)


_shown: dict[str, tuple[str, list[str]]] = {}  # by node: the prompt that ran, and its sentences


def show_on_node(*warnings: str | None) -> None:
    """Show warnings on the running node, where a server listens, and in the log.

    Those of an earlier prompt go from the node, also when there is nothing to show now.
    """
    sentences = [_capitalise(sentence) for sentence in warnings if sentence]
    for sentence in sentences:
        logging.warning("[AnimateDiff-Lightning] %s", sentence)
    running = get_executing_context()
    if running is None:
        return
    from server import PromptServer  # the headless host has no server to import

    if getattr(PromptServer, "instance", None) is None:
        return
    prompt, before = _shown.pop(running.node_id, ("", []))
    kept = before if prompt == running.prompt_id else []  # a node may run several times in one
    now = list(dict.fromkeys(kept + sentences))
    if now:
        _shown[running.node_id] = running.prompt_id, now
    if now or before:  # one text replaces the other; the frontend ignores an empty one
        server, text = PromptServer.instance, " ".join(now)
        server.send_progress_text(text or " ", running.node_id)
        # newer frontends drop that text when the run is over; web/warnings.js shows this one
        server.send_sync(WARNING_EVENT, {"node": running.node_id, "text": text}, server.client_id)


def _capitalise(sentence: str) -> str:
    """Return a sentence with a capital letter, unless it begins with the name of a file."""
    is_word = sentence.partition(" ")[0].isalpha()
    return sentence[0].upper() + sentence[1:] if is_word else sentence
