"""Makes subgraphs/*.json: workflows of the pack as one node each, ComfyUI's blueprints.

    python docs/make_blueprints.py

A blueprint is a workflow without its way to the disk, wrapped in a subgraph whose inputs are the
few widgets that a beginner needs. ComfyUI (0.8 and newer) finds the files by their folder.
"""

import json
import uuid
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INPUT, OUTPUT = -10, -20  # the ids of a subgraph's two ends
NAMES = uuid.UUID("b1f5a0a4-6c9e-5f0e-9d0b-5f6c1f6a7e01")
LEFT_OUT = {"SaveVideo", "MarkdownNote"}
CATEGORY = "AnimateDiff-Lightning"


@dataclass(frozen=True)
class Blueprint:
    """Which workflow a blueprint is made of, and its inputs as (node class, widget, label)."""

    name: str
    workflow: str
    description: str
    inputs: tuple[tuple[str, str, str], ...]


BLUEPRINTS = (
    Blueprint(
        "Text to Video (AnimateDiff-Lightning)",
        "Text to video in 4 steps",
        "Makes a clip from a prompt in 4 steps, with any SD1.5 checkpoint and an "
        "AnimateDiff-Lightning motion module.",
        (
            ("CLIPTextEncode", "text", "prompt"),
            ("CheckpointLoaderSimple", "ckpt_name", "checkpoint"),
            ("ADL_LoadMotionModule", "motion_module", "motion module"),
            ("EmptyLatentImage", "width", "width"),
            ("EmptyLatentImage", "height", "height"),
            ("EmptyLatentImage", "batch_size", "frames"),
        ),
    ),
    Blueprint(
        "Video to Video (AnimateDiff-Lightning)",
        "Video to video with ControlNet",
        "Draws a video anew from a prompt in 4 steps, following the edges of its pictures, with "
        "any SD1.5 checkpoint, an AnimateDiff-Lightning motion module and a Canny ControlNet. Load "
        "Video Frames inside it uploads a video.",
        (
            ("CLIPTextEncode", "text", "prompt"),
            ("CheckpointLoaderSimple", "ckpt_name", "checkpoint"),
            ("ADL_LoadMotionModule", "motion_module", "motion module"),
            ("ControlNetLoader", "control_net_name", "ControlNet"),
            ("ADL_LoadVideo", "video", "video"),
            ("ADL_LoadVideo", "width", "width"),
            ("ADL_LoadVideo", "height", "height"),
            ("ADL_LoadVideo", "max_frames", "frames"),
        ),
    ),
)


def make(blueprint: Blueprint) -> dict:
    """Return a workflow of one node, which is a blueprint's subgraph."""
    subgraph_id = str(uuid.uuid5(NAMES, blueprint.name))
    subgraph = wrap(blueprint, subgraph_id)
    node = outer_node(blueprint, subgraph, subgraph_id)
    return {
        "revision": 0,
        "last_node_id": node["id"],
        "last_link_id": 0,
        "nodes": [node],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [subgraph]},
        "extra": {},
    }


def wrap(blueprint: Blueprint, subgraph_id: str) -> dict:
    """Return the definition of the subgraph."""
    graph = json.loads((ROOT / "workflows" / f"{blueprint.workflow}.json").read_text())
    nodes = [n for n in graph["nodes"] if n["type"] not in LEFT_OUT]
    kept = {n["id"] for n in nodes}
    [(video, source, slot)] = [
        (link[0], link[1], link[2])
        for link in graph["links"]
        if link[1] in kept and link[3] not in kept
    ]
    links = [as_object(link) for link in graph["links"] if {link[1], link[3]} <= kept]
    links.append(
        as_object([video, source, slot, OUTPUT, 0, "VIDEO"]),
    )
    inputs, right = [], max(n["pos"][0] + n["size"][0] for n in nodes)
    for place, (kind, widget, label) in enumerate(blueprint.inputs):
        [node] = [n for n in nodes if n["type"] == kind]
        [(index, port)] = [
            (i, p)
            for i, p in enumerate(node["inputs"])
            if p.get("widget", {}).get("name") == widget
        ]
        link = graph["last_link_id"] + 1 + place
        port |= {"link": link, "label": label}  # ComfyUI 0.8 shows the label of the inner widget
        links.append(as_object([link, INPUT, place, node["id"], index, port["type"]]))
        inputs.append(end(blueprint, widget, label, port["type"], [link], place, -420))
    output = end(blueprint, "video", "video", "VIDEO", [video], 0, right + 140)
    count = len(blueprint.inputs)
    return {
        "id": subgraph_id,
        "version": 1,
        "state": {
            "lastGroupId": 0,
            "lastNodeId": graph["last_node_id"],
            "lastLinkId": graph["last_link_id"] + count,
            "lastRerouteId": 0,
        },
        "revision": 0,
        "config": {},
        "name": blueprint.name,
        "inputNode": {"id": INPUT, "bounding": [-440, 160, 120, 40 + 20 * count]},
        "outputNode": {"id": OUTPUT, "bounding": [right + 120, 160, 120, 60]},
        "inputs": inputs,
        "outputs": [output],
        "widgets": [],
        "nodes": nodes,
        "groups": [],
        "links": links,
        "extra": {},
        "category": CATEGORY,
        "description": blueprint.description,
    }


def end(
    blueprint: Blueprint, name: str, label: str, kind: str, links: list[int], place: int, x: float
) -> dict:
    """Return an input or output of the subgraph."""
    return {
        "id": str(uuid.uuid5(NAMES, f"{blueprint.name}/{label}")),
        "name": name,
        "type": kind,
        "linkIds": links,
        "label": label,
        "pos": [x, 180 + 20 * place],
    }


def as_object(link: list) -> dict:
    """Return a link as subgraphs have them; workflows have lists."""
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return dict(zip(names, link, strict=True))


def outer_node(blueprint: Blueprint, subgraph: dict, subgraph_id: str) -> dict:
    """Return the node that a user sees, with the widgets of the inner nodes."""
    shown = [
        [str(link["target_id"]), subgraph["inputs"][link["origin_slot"]]["name"]]
        for link in subgraph["links"]
        if link["origin_id"] == INPUT
    ]
    return {
        "id": subgraph["state"]["lastNodeId"] + 1,
        "type": subgraph_id,
        "pos": [0, 0],
        "size": [480, 170 + 26 * len(shown)],  # the prompt takes what the lines leave
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [
            {
                "label": port["label"],
                "name": port["name"],
                "type": port["type"],
                "widget": {"name": port["name"]},
                "link": None,
            }
            for port in subgraph["inputs"]
        ],
        "outputs": [{"label": "video", "name": "video", "type": "VIDEO", "links": []}],
        "properties": {"proxyWidgets": shown},
        "widgets_values": [],
        "title": blueprint.name,
    }


def main() -> None:
    """Write every blueprint."""
    for blueprint in BLUEPRINTS:
        file = ROOT / "subgraphs" / f"{blueprint.name}.json"
        file.write_text(json.dumps(make(blueprint), indent=1) + "\n")
        print(f"wrote {file}")


if __name__ == "__main__":
    main()
