"""The workflows on a real ComfyUI server: queued over its API, followed on its websocket."""

import io
import json
import uuid
from pathlib import Path

import av
import numpy as np
import pytest

PACK = Path(__file__).resolve().parents[1]
WORKFLOW = PACK / "workflows" / "api" / "Text to video in 4 steps.json"
MOTION_FILE = "animatediff_lightning_4step_comfyui.safetensors"


def workflow(seed: int = 0, **changes) -> dict:
    """Return the shipped API workflow with small latents; `changes` are node__input=value."""
    graph = json.loads(WORKFLOW.read_text())
    changes = {"5__width": 64, "5__height": 64, "9__noise_seed": seed} | changes
    for place, value in changes.items():
        node, name = place.split("__")
        graph[node]["inputs"][name] = value
    return graph


def plain(seed: int = 0) -> dict:
    """Return a workflow that saves what the plain model makes, losslessly."""
    graph = workflow(seed)
    for node in ("2", "3", "6", "12", "13"):
        del graph[node]
    graph["7"]["inputs"]["model"] = ["1", 0]
    graph["6"] = {
        "class_type": "BasicScheduler",
        "inputs": {"model": ["1", 0], "scheduler": "simple", "steps": 2, "denoise": 1.0},
    }
    graph["5"]["inputs"]["batch_size"] = 2
    graph["13"] = {
        "class_type": "SaveImage",
        "inputs": {"images": ["11", 0], "filename_prefix": f"plain{uuid.uuid4().hex}"},
    }
    return graph


def pixels(server, seed: int) -> np.ndarray:
    """Return what the plain model makes; another prefix each time, so that nothing is cached."""
    from PIL import Image

    graph = plain(seed)
    _, entry = server.run(graph)
    return np.asarray(Image.open(io.BytesIO(server.file(entry, "13"))))


def frames(content: bytes) -> tuple[np.ndarray, float]:
    """Return the frames (n, h, w, 3) and frames per second of a video."""
    with av.open(io.BytesIO(content)) as video:
        fps = float(video.streams.video[0].average_rate)
        return np.stack([f.to_ndarray(format="rgb24") for f in video.decode(video=0)]), fps


def error_of(messages: list[dict]) -> str:
    assert messages[-1]["type"] == "execution_error", messages[-1]
    return messages[-1]["data"]["exception_message"].strip()


@pytest.mark.smoke
def test_nodes_are_registered_with_help_and_tooltips(server):
    info = json.loads(server.get("/object_info"))
    ours = {k: v for k, v in info.items() if k.startswith("ADL_")}
    assert set(ours) >= {"ADL_LoadMotionModule", "ADL_ApplyMotionModule", "ADL_LightningScheduler"}
    assert len(ours) <= 10
    for name, node in ours.items():
        assert server.get(f"/extensions/ComfyUI-AnimateDiff-Lightning/docs/{name}.md")
        assert node["description"]
        assert all(node["output_tooltips"])
        for kind in ("required", "optional"):
            for options in node["input"].get(kind, {}).values():
                assert options[1]["tooltip"]


def test_only_known_extensions_are_listed(server):
    info = json.loads(server.get("/object_info/ADL_LoadMotionModule"))
    spec = info["ADL_LoadMotionModule"]["input"]["required"]["motion_module"]
    options = spec[0] if isinstance(spec[0], list) else spec[1]["options"]
    assert {MOTION_FILE, "broken.safetensors"} <= set(options)
    assert "notes.txt" not in options


@pytest.mark.smoke
def test_clip_comes_out_and_plain_model_stays(server):
    before = pixels(server, 5)
    progress = []
    messages, entry = server.run(workflow(0), lambda data: progress.append(data["value"]))
    assert messages[-1]["type"] == "execution_success", messages[-1]
    assert progress[-1] == 4
    clip, fps = frames(server.file(entry, "13"))
    assert clip.shape == (16, 64, 64, 3)
    assert fps == 8
    change = np.abs(clip[1:].astype(int) - clip[:-1]).mean(axis=(1, 2, 3))
    assert (change > 1).all(), "frames stand still"
    other, _ = frames(server.file(server.run(workflow(1))[1], "13"))
    assert np.abs(other.astype(int) - clip).mean() > 1
    np.testing.assert_array_equal(pixels(server, 5), before)


@pytest.mark.smoke
def test_no_order_of_plain_and_motion_runs_changes_one(server):
    """Neither without nor with an unload in between, which the page's button asks for."""
    few = {"5__batch_size": 4}

    def clip(seed):
        return frames(server.file(server.run(workflow(seed, **few))[1], "13"))[0]

    motion, plain = clip(30), pixels(server, 30)
    for unload in (False, True):
        for _ in range(2):
            np.testing.assert_array_equal(pixels(server, 30), plain)
            if unload:
                server.post("/free", {"unload_models": True, "free_memory": True})
            # another prefix, so that nothing is cached
            other = workflow(30, **few, **{"13__filename_prefix": uuid.uuid4().hex})
            again = frames(server.file(server.run(other)[1], "13"))[0]
            np.testing.assert_array_equal(again, motion)


@pytest.mark.smoke
def test_plain_model_is_bit_equal_after_a_cancelled_run(server):
    before = pixels(server, 6)
    messages, _ = server.run(
        workflow(2, **{"6__steps": 8}),
        lambda data: data["value"] == 2 and server.post("/interrupt", {}),
    )
    assert messages[-1]["type"] == "execution_interrupted"
    np.testing.assert_array_equal(pixels(server, 6), before)


def told(server, **changes) -> dict[str, list[str]]:
    """Run the workflow and return what it told the user on each node."""
    messages, _ = server.run(workflow(**changes))
    assert messages[-1]["type"] == "execution_success", messages[-1]
    texts = {}
    for message in messages:
        if message["type"] == "text":
            texts.setdefault(message["data"]["node"], []).append(message["data"]["text"])
    return texts


@pytest.mark.smoke
def test_warnings_stand_on_their_node_until_their_cause_is_gone(server):
    few = {"5__batch_size": 2, "5__width": 64}
    graph = workflow(20, **few)
    (sampler,) = (k for k, n in graph.items() if n["class_type"] == "SamplerCustomAdvanced")
    (scheduler,) = (k for k, n in graph.items() if n["class_type"] == "ADL_LightningScheduler")
    texts = told(server, seed=21, **few, **{f"{scheduler}__steps": 3})
    assert set(texts) == {sampler, scheduler}
    assert [t.count("distilled for 4 steps, not 3") for t in texts[scheduler]] == [1]
    assert [t.count("these noise levels are different") for t in texts[sampler]] == [1]
    assert told(server, seed=22, **few) == {sampler: [" "], scheduler: [" "]}
    assert told(server, seed=23, **few) == {}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"5__batch_size": 33}, "Sliding Context"),
        ({"6__steps": 0}, "yourself"),
        ({"6__model": ["1", 0]}, "connect the MODEL of Apply Motion Module"),
        ({"2__motion_module": "broken.safetensors"}, "truncated"),
        ({"6__start_step": 4}, "start_step"),
    ],
)
def test_wrong_graphs_get_one_sentence_and_the_server_lives(server, changes, sentence):
    before = pixels(server, 7)
    messages, _ = server.run(workflow(3, **changes))
    error = error_of(messages)
    assert sentence in error
    assert "\n" not in error
    np.testing.assert_array_equal(pixels(server, 7), before)


def test_motion_module_that_is_not_there_is_named(server):
    graph = workflow(4, **{"2__motion_module": "gone.ckpt"})
    answer = server.post("/prompt", {"prompt": graph})
    if "prompt_id" in answer:  # v0.3.64 does not check the choices of such a widget
        text = error_of(server.run(graph)[0])
    else:
        text = json.dumps(answer["node_errors"])
    assert "gone.ckpt" in text
