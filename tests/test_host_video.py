"""Load Video, Prompt Travel and Video Noise on a real server: upload, queue, look at what is saved.

What needs no server is checked in tests/host/video_checks.py and tests/host/clip_checks.py.
"""

import io
import json
import urllib.request
import uuid
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

API = Path(__file__).resolve().parents[1] / "workflows" / "api"
TEXT_TO_VIDEO = API / "Text to video in 4 steps.json"
RATE, LEVEL = 48000, 5


def video(seconds: float = 2, fps: int = 25, sound: bool = True) -> bytes:
    """Return an MP4 of even greys, frame i of level 5 * i, with a tone in its second half."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        track = container.add_stream("aac", rate=RATE, layout="stereo") if sound else None
        for i in range(round(seconds * fps)):
            pixels = np.full((96, 128, 3), LEVEL * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
        if sound:
            t = np.arange(round(seconds * RATE)) / RATE
            tone = np.where(t >= seconds / 2, 0.5 * np.sin(6283 * t), 0).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(np.stack([tone, tone]), "fltp", "stereo")
            frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
            container.mux(track.encode(frame))
            container.mux(track.encode())
    return file.getvalue()


def upload(server, name: str, content: bytes) -> str:
    """Send a file as the widget's button does; returns the name that the server gives it."""
    boundary = uuid.uuid4().hex
    disposition = f'Content-Disposition: form-data; name="image"; filename="{name}"'
    head, tail = f"--{boundary}\r\n{disposition}\r\n\r\n", f"\r\n--{boundary}--\r\n"
    request = urllib.request.Request(
        f"http://{server.address}/upload/image",
        head.encode() + content + tail.encode(),
        {"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())["name"]


def graph(name: str, **inputs) -> dict:
    """Return a workflow that loads a video and saves what came out."""
    return {
        "1": {"class_type": "ADL_LoadVideo", "inputs": {"video": name, **inputs}},
        "2": {
            "class_type": "CreateVideo",
            "inputs": {"images": ["1", 0], "audio": ["1", 1], "fps": ["1", 2]},
        },
        "3": {
            "class_type": "SaveVideo",
            "inputs": {
                "video": ["2", 0],
                "filename_prefix": uuid.uuid4().hex,
                "format": "auto",
                "codec": "auto",
            },
        },
    }


def saved(server, workflow: dict, node: str = "3"):
    """Run a workflow; returns the frames (n, h, w, 3), fps, and onset of the sound (None: none)."""
    messages, entry = server.run(workflow)
    assert messages[-1]["type"] == "execution_success", messages[-1]
    with av.open(io.BytesIO(server.file(entry, node))) as container:
        fps = float(container.streams.video[0].average_rate)
        frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
        if not container.streams.audio:
            return frames, fps, None
        container.seek(0)
        samples = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
        loud = np.abs(samples) > 0.1
        return frames, fps, np.argmax(loud) / RATE if loud.any() else None


def refusal(server, workflow: dict) -> str:
    """Return what the server says of a workflow, when it is queued or when it runs."""
    answer = server.post("/prompt", {"prompt": workflow})
    if "prompt_id" not in answer:
        return json.dumps(answer["node_errors"])
    messages, _ = server.run(workflow)
    assert messages[-1]["type"] == "execution_error", messages[-1]
    error = messages[-1]["data"]["exception_message"].strip()
    assert "\n" not in error
    return error


def test_an_uploaded_video_comes_out_at_the_asked_rate_with_its_sound(server):
    name = upload(server, "clip.mp4", video())
    frames, fps, onset = saved(server, graph(name, start=0.4, fps=12.5, max_frames=16, width=64))
    assert frames.shape == (16, 64, 64, 3)
    assert fps == 12.5
    shown = frames.mean(axis=(1, 2, 3)) / LEVEL
    np.testing.assert_allclose(shown, 10 + 2 * np.arange(16), atol=0.7)
    assert abs(onset - 0.6) < 0.05
    frames, fps, _ = saved(server, graph(name))  # as an artist finds the node
    assert frames.shape == (50, 384, 512, 3)
    assert fps == 25


def test_a_silent_video_is_saved_with_silence(server):
    name = upload(server, "silent.mp4", video(sound=False))
    frames, fps, onset = saved(server, graph(name, fps=8.0, width=64))
    assert (len(frames), fps, onset) == (16, 8, None)


def test_a_changed_file_is_read_again(server):
    name = upload(server, "changing.mp4", video(seconds=1))
    workflow = graph(name, width=64, max_frames=0)
    assert len(saved(server, workflow)[0]) == 25
    folder = server.log.parent / "input"
    (folder / name).write_bytes(video(seconds=0.4))
    assert len(saved(server, workflow)[0]) == 10


@pytest.mark.parametrize("name", ["../server.log", "/etc/hosts", "clip.mp4 [output]", "gone.mp4"])
def test_files_outside_the_input_folder_are_refused(server, name):
    assert "ComfyUI's input folder" in refusal(server, graph(name))


def test_a_damaged_video_is_told_and_the_server_lives(server):
    name = upload(server, "damaged.mp4", video()[:3000])
    assert "is not a video that PyAV can read" in refusal(server, graph(name))
    assert "start is 9 s" in refusal(server, graph(upload(server, "c.mp4", video()), start=9.0))


def travelling(prompts: str, **noise) -> dict:
    """Return the shipped workflow with Prompt Travel and Video Noise in place of the core's."""
    workflow = json.loads(TEXT_TO_VIDEO.read_text())
    workflow["5"]["inputs"] |= {"width": 64, "height": 64}
    workflow["4"] = {
        "class_type": "ADL_PromptTravel",
        "inputs": {"clip": ["1", 1], "prompts": prompts, "num_frames": 16},
    }
    workflow["9"] = {"class_type": "ADL_VideoNoise", "inputs": {"seed": 0, **noise}}
    workflow["13"]["inputs"]["filename_prefix"] = uuid.uuid4().hex
    return workflow


def test_prompt_travel_and_video_noise_make_a_clip(server):
    still, *_ = saved(server, travelling("0: a meadow"), "13")
    assert still.shape == (16, 64, 64, 3)
    travelled, *_ = saved(server, travelling("0: a meadow\n15: snow"), "13")
    calm, *_ = saved(server, travelling("0: a meadow", mode="constant"), "13")
    for other in (travelled, calm):
        assert np.abs(other.astype(int) - still).mean() > 0.5


def test_a_wrong_line_is_named(server):
    assert "line 2: frame 16" in refusal(server, travelling("0: a meadow\n16: snow"))
