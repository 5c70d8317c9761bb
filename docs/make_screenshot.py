"""Makes docs/graph.png or docs/blueprint.png: nodes on the canvas of a running ComfyUI.

    python main.py --cpu --port 8188        # in ComfyUI, with this pack in custom_nodes/
    python docs/make_screenshot.py --server http://127.0.0.1:8188
    python docs/make_screenshot.py --server http://127.0.0.1:8188 --blueprint

The first is a workflow of the pack, the second a blueprint with Save Video behind it.

It takes Debian's chromium, or the browser that the variable CHROMIUM names. The files that the
workflow names must be in ComfyUI's model folders, or the page shows a message about them; empty
files will do, since nothing is run.
"""

import argparse
import json
import os
import re
import shutil
from pathlib import Path

from playwright import sync_api

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW = ROOT / "workflows" / "Text to video in 4 steps.json"
BLUEPRINT = ROOT / "subgraphs" / "Text to Video (AnimateDiff-Lightning).json"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
VIEWPORT = {"width": 1900, "height": 1000}
SPACE = [120, 140, 1600, 720]  # left, top, width, height: no menu or panel lies over it
MARGIN = 20  # pixels of canvas around the nodes

DROP = """([content, name]) => {
  const canvas = document.querySelector('#graph-canvas');
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([content], name, {type: 'application/json'}));
  const options = {bubbles: true, cancelable: true, dataTransfer, clientX: 800, clientY: 500};
  for (const kind of ['dragenter', 'dragover', 'drop'])
    canvas.dispatchEvent(new DragEvent(kind, options));
}"""
SAVE_ITS_VIDEO = """() => {
  const [node] = app.graph.nodes, save = LiteGraph.createNode('SaveVideo');
  app.graph.add(save);
  save.pos = [node.pos[0] + node.size[0] + 80, node.pos[1]];
  node.connect(0, save, 0);
}"""
# moves the graph into the space and returns where its nodes lie on the page
FIT = """([left, top, width, height]) => {
  const boxes = app.graph.nodes.map(node => node.getBounding());
  const x0 = Math.min(...boxes.map(b => b[0])), x1 = Math.max(...boxes.map(b => b[0] + b[2]));
  const y0 = Math.min(...boxes.map(b => b[1])), y1 = Math.max(...boxes.map(b => b[1] + b[3]));
  const scale = Math.min(width / (x1 - x0), height / (y1 - y0), 1);
  const box = app.canvas.canvas.getBoundingClientRect();
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset = [(left - box.x) / scale - x0, (top - box.y) / scale - y0];
  app.canvas.setDirty(true, true);
  return [left, top, (x1 - x0) * scale, (y1 - y0) * scale];
}"""


def open_page(browser: sync_api.Browser, server: str, scale: float) -> sync_api.Page:
    """Open ComfyUI's page, with nothing from outside this machine, and close its greeting."""
    page = browser.new_page(viewport=VIEWPORT, device_scale_factor=scale)
    page.route(re.compile("^https:"), lambda route: route.abort())
    page.goto(server)
    page.wait_for_function("document.querySelector('#graph-canvas') && window.app?.canvas")
    page.wait_for_timeout(3000)
    page.keyboard.press("Escape")
    page.get_by_role("dialog").first.wait_for(state="detached")
    return page


def drop(page: sync_api.Page, workflow: Path) -> None:
    """Drop a workflow file on the canvas and wait until its nodes are there."""
    first = json.loads(workflow.read_text())["nodes"][0]["id"]
    page.evaluate(DROP, [workflow.read_text(), workflow.name])
    page.wait_for_function("id => app.graph.getNodeById(id)", arg=first)
    page.wait_for_timeout(2000)


def photograph(page: sync_api.Page, out: Path) -> None:
    """Save the part of the canvas that the nodes take up."""
    left, top, width, height = page.evaluate(FIT, SPACE)
    page.wait_for_timeout(1000)
    clip = {
        "x": left - MARGIN,
        "y": top - MARGIN,
        "width": width + 2 * MARGIN,
        "height": height + 2 * MARGIN,
    }
    page.screenshot(path=out, clip=clip)


def main() -> None:
    """Take the screenshot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="http://127.0.0.1:8188", help="A running ComfyUI.")
    parser.add_argument("--blueprint", action="store_true", help="Show a blueprint.")
    parser.add_argument("--workflow", type=Path, help="Another file to drop.")
    parser.add_argument("--out", type=Path, help="Another .png file to write.")
    parser.add_argument("--scale", type=float, default=1.25, help="Pixels of the file per pixel.")
    options = parser.parse_args()
    name, file = ("blueprint", BLUEPRINT) if options.blueprint else ("graph", WORKFLOW)
    out = options.out or ROOT / "docs" / f"{name}.png"
    with sync_api.sync_playwright() as playwright:
        chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = open_page(browser, options.server, options.scale)
        drop(page, options.workflow or file)
        if options.blueprint:
            page.evaluate(SAVE_ITS_VIDEO)
        photograph(page, out)
    print(f"wrote {out} ({out.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()
