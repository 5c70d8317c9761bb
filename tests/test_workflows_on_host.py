"""The shipped workflows on a real ComfyUI server: the clip has the asked frames, size and sound.

The pictures are an eighth as wide and high as the workflow says, and the models are thin. The first
workflow, text to video in 4 steps, is run by test_host_server.py.
"""

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest

from . import thin_files

API = Path(__file__).resolve().parents[1] / "workflows" / "api"
PATHS = [path for path in sorted(API.glob("*.json")) if "4-step" not in path.stem]
SHRINK = 8
# what a workflow adds to the plain clip: its name's start, the node, and the input that is its dose
ADDED = [
    ("AnimateDiff-Lightning camera zoom", "ADL_LoadMotionLoRA", "strength"),
    ("AnimateDiff-Lightning video to video", "ControlNetApplyAdvanced", "strength"),
    ("AnimateLCM", "LoraLoaderModelOnly", "strength_model"),
]


@dataclass(frozen=True)
class Clip:
    """What was saved: pixels (n, h, w, 3), frames a second, and the sound's start in seconds."""

    frames: np.ndarray
    fps: float
    onset: float | None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.frames.shape[2], self.frames.shape[1]


def read(content: bytes) -> Clip:
    """Decode a saved video."""
    with av.open(io.BytesIO(content)) as file:
        fps = float(file.streams.video[0].average_rate)
        frames = np.stack([f.to_ndarray(format="rgb24") for f in file.decode(video=0)])
        if not file.streams.audio:
            return Clip(frames, fps, None)
        file.seek(0)
        rate = file.streams.audio[0].rate
        samples = np.concatenate([f.to_ndarray()[0] for f in file.decode(audio=0)])
        return Clip(frames, fps, float(np.argmax(np.abs(samples) > 0.1) / rate))


def nodes(workflow: dict, kind: str) -> list[dict]:
    """Return the inputs of every node of a class."""
    return [n["inputs"] for n in workflow.values() if n["class_type"] == kind]


def small(path: Path) -> dict:
    """Return a workflow with small pictures, where their size is not that of a video."""
    workflow = json.loads(path.read_text())
    for latent in nodes(workflow, "EmptyLatentImage"):
        for name in ("width", "height"):
            if not isinstance(latent[name], list):
                latent[name] //= SHRINK
    return workflow


def few_frames(workflow: dict) -> dict:
    """Return the workflow with two frames."""
    for video in nodes(workflow, "ADL_LoadVideo"):
        video["max_frames"] = 2
    for latent in nodes(workflow, "EmptyLatentImage"):
        if not isinstance(latent["batch_size"], list):
            latent["batch_size"] = 2
    return workflow


def run(server, workflow: dict) -> Clip:
    """Run a workflow; neither it nor the pack may complain."""
    log_before = len(server.log.read_bytes())
    messages, entry = server.run(workflow)
    assert messages[-1]["type"] == "execution_success", messages[-1]
    assert b"[AnimateDiff-Lightning]" not in server.log.read_bytes()[log_before:]
    save = next(key for key, node in workflow.items() if node["class_type"] == "SaveVideo")
    return read(server.file(entry, save))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_clip_is_as_the_workflow_says(server, path):
    workflow = small(path)
    clip = run(server, workflow)
    if nodes(workflow, "ADL_LoadVideo"):  # as the video it was made from
        assert (clip.size, len(clip.frames)) == (thin_files.SIZE, thin_files.FRAMES)
        assert clip.fps == thin_files.RATE
        assert clip.onset == pytest.approx(thin_files.ONSET, abs=0.05)
    else:
        (latent,), (video,) = nodes(workflow, "EmptyLatentImage"), nodes(workflow, "CreateVideo")
        assert clip.size == (latent["width"], latent["height"])
        assert (len(clip.frames), clip.fps) == (latent["batch_size"], video["fps"])
        assert clip.onset is None
    change = np.abs(clip.frames[1:].astype(int) - clip.frames[:-1]).mean(axis=(1, 2, 3))
    assert (change > 1).all(), "frames stand still"
    for promised in re.findall(r"(\d+)-frame", path.stem):
        assert len(clip.frames) == int(promised)


@pytest.mark.parametrize(("start", "kind", "dose"), ADDED)
def test_the_added_file_is_seen(server, start, kind, dose):
    (path,) = API.glob(f"{start}*.json")
    workflow, without = few_frames(small(path)), few_frames(small(path))
    (inputs,) = nodes(without, kind)
    assert inputs[dose] > 0
    inputs[dose] = 0.0
    change = run(server, workflow).frames.astype(int) - run(server, without).frames
    assert np.abs(change).mean() > 0.5
