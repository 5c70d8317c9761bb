"""Writes locales/en anew: what the host reads for translations, out of the nodes' schemas.

Run in a ComfyUI interpreter: python tests/host/write_locales.py COMFYUI_FOLDER
tests/test_host_front.py fails where the files and the schemas differ.
"""

import json
import sys

import host

FOLDER = host.PACK / "locales" / "en"
DATA_TYPES = {"ADL_CONTEXT": "sliding context", "ADL_MOTION_MODULE": "motion module"}


def node_texts(schema):
    """Return a node's part of nodeDefs.json; inputs keep the names that errors and help use."""
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {i.id: {"name": i.id, "tooltip": i.tooltip} for i in schema.inputs},
        "outputs": {
            str(k): {"name": o.display_name, "tooltip": o.tooltip}
            for k, o in enumerate(schema.outputs)
        },
    }


def write(schemas):
    """Write the texts of the nodes, and those of the menu and of our own types."""
    categories = sorted({schema.category for schema in schemas})
    contents = {
        "nodeDefs.json": {schema.node_id: node_texts(schema) for schema in schemas},
        "main.json": {"nodeCategories": {c: c for c in categories}, "dataTypes": DATA_TYPES},
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (FOLDER / name).write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    host.start(sys.argv[1])
    write([node.define_schema() for node in host.our_nodes().values()])
