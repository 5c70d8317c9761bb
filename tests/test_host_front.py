"""What a real ComfyUI server sends its frontend: previews while sampling, and translations."""

import io
import json
import struct
import uuid
from pathlib import Path

import numpy as np
import safetensors.numpy
import websocket
from PIL import Image

PACK = Path(__file__).resolve().parents[1]
WORKFLOW = PACK / "workflows" / "api" / "Text to video in 4 steps.json"
LOCALES = PACK / "locales" / "en"
STALE = "locales/en is stale: run tests/host/write_locales.py, as its head says"
CELL = 8  # side of a latent
SIDE = 512  # of a preview; the server scales to it
PREVIEW_IMAGE = 1  # the server's number for this kind of binary message


def graph(plain: bool = False) -> dict:
    """Return the shipped API workflow on small latents, saving them; `plain` is without motion."""
    graph = json.loads(WORKFLOW.read_text())
    graph["5"]["inputs"] |= {"width": 8 * CELL, "height": 8 * CELL}
    graph["9"]["inputs"]["noise_seed"] = 3
    for node in ("11", "12", "13"):
        del graph[node]
    graph["11"] = {
        "class_type": "SaveLatent",
        "inputs": {"samples": ["10", 0], "filename_prefix": uuid.uuid4().hex},
    }
    if plain:
        del graph["2"], graph["3"]
        graph["7"]["inputs"]["model"] = ["1", 0]
        graph["6"] = {
            "class_type": "BasicScheduler",
            "inputs": {"model": ["1", 0], "scheduler": "simple", "steps": 2, "denoise": 1.0},
        }
    return graph


def run(server, workflow: dict) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the pictures (h, w, 3) that a run sends, in order, and its latents (n, 4, h, w)."""
    client = uuid.uuid4().hex
    stream = websocket.create_connection(f"ws://{server.address}/ws?clientId={client}")
    stream.settimeout(180)
    job = server.post("/prompt", {"prompt": workflow, "client_id": client})["prompt_id"]
    pictures, kind = [], ""
    while kind not in ("execution_success", "execution_error"):
        message = stream.recv()
        if isinstance(message, bytes):
            assert struct.unpack(">I", message[:4]) == (PREVIEW_IMAGE,)
            pictures.append(np.asarray(Image.open(io.BytesIO(message[8:]))).astype(float))
        else:
            kind = json.loads(message)["type"]
    stream.close()
    assert kind == "execution_success", message
    latents = server.file(server.history(job), "11")
    return pictures, safetensors.numpy.load(latents)["latent_tensor"]


def tiled(latents: np.ndarray, frames: list[int], columns: int) -> np.ndarray:
    """Return frames side by side, row after row, (h, w, 4)."""
    rows = [
        np.concatenate(latents[frames[i : i + columns]], axis=2)
        for i in range(0, len(frames), columns)
    ]
    return np.concatenate(rows, axis=1).transpose(1, 2, 0)


def agreement(picture: np.ndarray, latents: np.ndarray) -> float:
    """Return how far a picture is one linear function of latents (h, w, 4), 1 at most (R^2).

    The host draws latents by fixed factors, cut off at black and white, and scales to SIDE.
    """
    height, width = latents.shape[:2]
    assert picture.shape == (SIDE, SIDE, 3)
    y = ((np.arange(height) + 0.5) * SIDE / height).astype(int)
    x = ((np.arange(width) + 0.5) * SIDE / width).astype(int)
    colours = picture[np.ix_(y, x)].reshape(-1, 3)
    inputs = np.concatenate([latents.reshape(-1, 4), np.ones((height * width, 1))], axis=1)
    fit = inputs @ np.linalg.lstsq(inputs, colours, rcond=None)[0]
    return 1 - ((colours - fit) ** 2).sum() / ((colours - colours.mean(0)) ** 2).sum()


def test_previews_are_sheets_of_nine_frames(server):
    """The last step's x0 is the clip itself, so its picture is known."""
    pictures, latents = run(server, graph())
    assert len(pictures) == 4
    shown = [0, 2, 4, 6, 8, 9, 11, 13, 15]
    assert agreement(pictures[-1], tiled(latents, shown, 3)) > 0.5
    for others in (shown[::-1], [0] * 9, [*shown[1:], 0]):
        assert agreement(pictures[-1], tiled(latents, others, 3)) < 0.2, others
    assert agreement(pictures[-1], tiled(latents, [0], 1)) < 0.2


def test_previews_of_a_plain_model_stay_the_hosts(server):
    pictures, latents = run(server, graph(plain=True))
    assert agreement(pictures[-1], tiled(latents, [0], 1)) > 0.5


def test_translations_say_what_the_nodes_say(server):
    info = json.loads(server.get("/object_info"))
    ours = {name: node for name, node in info.items() if name.startswith("ADL_")}
    served = json.loads(server.get("/i18n"))["en"]
    assert len(ours) == 9
    translated = {k: v for k, v in served["nodeDefs"].items() if k.startswith("ADL_")}
    assert translated == {name: texts(node) for name, node in ours.items()}, STALE
    for node in ours.values():
        assert node["category"] in served["nodeCategories"], STALE
    sockets = {kind for node in ours.values() for kind in (*types(node), *node["output"])}
    assert {t for t in sockets if t.startswith("ADL_")} <= served["dataTypes"].keys(), STALE


def test_translations_hold_nothing_that_the_frontend_reads_as_a_sign():
    """Its messages have {lists}, @:links and plurals | of their own."""
    for path in LOCALES.glob("*.json"):
        for text in leaves(json.loads(path.read_text())):
            assert text
            assert not set(text) & set("{}@|"), text


def inputs(node: dict) -> dict:
    return {k: v for part in node["input"].values() for k, v in part.items()}


def types(node: dict) -> list[str]:
    return [spec[0] for spec in inputs(node).values() if isinstance(spec[0], str)]


def texts(node: dict) -> dict:
    """Return what nodeDefs.json has to say of a node, by what the server says of it."""
    outputs = zip(node["output_name"], node["output_tooltips"], strict=True)
    return {
        "display_name": node["display_name"],
        "description": node["description"],
        "inputs": {k: {"name": k, "tooltip": v[1]["tooltip"]} for k, v in inputs(node).items()},
        "outputs": {str(i): {"name": n, "tooltip": t} for i, (n, t) in enumerate(outputs)},
    }


def leaves(part) -> list[str]:
    if isinstance(part, dict):
        return [text for value in part.values() for text in leaves(value)]
    return [part]
