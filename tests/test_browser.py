"""The workflows in ComfyUI's real frontend: a headless Chromium drops, runs, browses and reads.

Its pictures, and all that the console said, go to screenshots/, which git ignores.
"""

import json
import os
import re
import shutil
import urllib.parse
from pathlib import Path

import pytest
from PIL import Image

from . import thin_files
from .conftest import HOSTS

sync_api = pytest.importorskip(
    "playwright.sync_api",
    reason="NO PLAYWRIGHT FOUND: the frontend was not tested; pip install playwright",
)
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason="NO CHROMIUM FOUND: the frontend was not tested; install chromium or set CHROMIUM",
)

PACK = Path(__file__).resolve().parents[1]
PACK_NAME = "ComfyUI-AnimateDiff-Lightning"
WORKFLOWS = sorted((PACK / "workflows").glob("*.json"))
TEXT_TO_VIDEO = PACK / "workflows" / "AnimateDiff-Lightning 4-step text to video.json"
DOCS = sorted((PACK / "web" / "docs").glob("*.md"))
SCREENSHOTS = PACK / "screenshots"
FRONTEND_NODES = {"MarkdownNote", "Note", "Reroute", "PrimitiveNode"}
SEEDS = {"seed", "noise_seed"}
PLAYER = {"video-preview"}  # the frontend sends its player along, and the server leaves it out
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip

# what the console says of every pack on an offline host
KNOWN_NOISE = {
    "no file of the user's own yet": r"404 .*/(user\.css|favicon\.ico|api/userdata[?/])",
    "help in the reader's language comes before ours": r"404 .*/docs/\w+/en\.md",
    "nothing outside this machine is let in": r"ERR_FAILED https://|Error fetching file size",
    "a bug of frontend 1.27 at its start": r"reading 'id'\)(.|\n)*Proxy\.addSetting",
}

# a drop as the browser makes it, which a page may only imitate; on the middle, or on `place`
DROP = """([content, name, type, place]) => {
  const canvas = document.querySelector('#graph-canvas');
  const box = canvas.getBoundingClientRect();
  const dataTransfer = new DataTransfer();
  const bytes = type === 'application/json' ? content : new Uint8Array(content);
  dataTransfer.items.add(new File([bytes], name, {type}));
  const [clientX, clientY] = place ?? [box.x + box.width / 2, box.y + box.height / 2];
  const options = {bubbles: true, cancelable: true, dataTransfer, clientX, clientY};
  for (const kind of ['dragenter', 'dragover', 'drop'])
    canvas.dispatchEvent(new DragEvent(kind, options));
}"""
# small pictures, and two windows at most
SHRINK = """() => {
  const most = {width: 64, height: 64, batch_size: 20};
  for (const node of app.graph.nodes)
    for (const widget of node.widgets ?? [])
      if (widget.name in most) {
        const old = widget.value;
        widget.value = old ? Math.min(old, most[widget.name]) : most[widget.name];
        widget.callback?.(widget.value);
      }
}"""
SELECT_NEW_NODE = """async (kind) => {
  app.graph.clear();
  app.canvas.ds.reset();
  const node = LiteGraph.createNode(kind);
  node.pos = [600, 300];
  app.graph.add(node);
  app.canvas.setDirty(true, true);
  await new Promise(resolve => setTimeout(resolve, 500));
  app.canvas.selectNode(node);
  app.canvas.setDirty(true, true);
}"""
# the name of the file that Save Video has saved; the preview of a source video is none
SAVED = """() => app.graph.nodes.filter(node => node.type === 'SaveVideo')
  .flatMap(node => app.nodeOutputs[node.id]?.images ?? [])[0]?.filename"""
# where a widget of the newest node lies on the screen
WIDGET = """name => {
  const node = app.graph.nodes.at(-1);
  const widget = node.widgets.find(widget => widget.name === name);
  const {scale, offset} = app.canvas.ds;
  const box = app.canvas.canvas.getBoundingClientRect();
  const [x, y] = [node.pos[0] + node.size[0] / 2, node.pos[1] + widget.last_y + 10];
  return [box.x + (x + offset[0]) * scale, box.y + (y + offset[1]) * scale];
}"""
OPENED = "app.extensionManager.workflow.activeWorkflow?.path"


class Frontend:
    """ComfyUI's page in a browser, and what its console has said."""

    def __init__(self, page, server, host_name: str) -> None:
        self.page, self.server, self.host_name = page, server, host_name
        self.noise: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.noise.append(f"uncaught {error.stack}"))
        page.route(re.compile("^https:"), lambda route: route.abort())
        page.goto(f"http://{server.address}")
        page.wait_for_function(
            "window.app?.graph && app.extensionManager && document.querySelector('#graph-canvas')"
        )
        self.dialog = page.get_by_role("dialog")
        self.close_dialog()  # a new user is greeted with the templates

    def _hear(self, message) -> None:
        if message.type == "error":
            self.noise.append(f"error {message.text} {message.location['url']}")

    def unknown_noise(self) -> list[str]:
        """Return what the console said that is not the host's own."""
        return [n for n in self.noise if not any(re.search(k, n) for k in KNOWN_NOISE.values())]

    def close_dialog(self) -> None:
        """Wait for a dialog and close it by its own button."""
        self.dialog.first.wait_for()
        close = self.dialog.locator(".p-dialog-close-button, button:has(.pi-times)")
        if close.count() == 0:  # newer frontends draw the cross with an icon font
            close = self.dialog.locator("button:has([class*='lucide--x'])")
        close.first.click()
        self.dialog.first.wait_for(state="detached")

    def photograph(self, name: str) -> None:
        """Save what the page shows now."""
        SCREENSHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{self.host_name} {name}.png")

    def drop_text(self, name: str, text: str) -> None:
        """Drop a workflow file's text on the canvas."""
        self.page.evaluate(DROP, [text, name, "application/json", None])

    def drop(self, name: str, graph: dict) -> None:
        """Drop a workflow file on the canvas and wait until it is the open one."""
        before = self.page.evaluate(OPENED)
        self.drop_text(name, json.dumps(graph))
        self.wait_until_opened(before, graph)

    def wait_until_opened(self, before: str, graph: dict) -> None:
        """Wait until another workflow than `before` is open, with as many nodes as `graph`."""
        self.page.wait_for_function(
            f"([path, count]) => {OPENED} !== path && app.graph.nodes.length === count",
            arg=[before, len(graph["nodes"])],
        )
        self.page.wait_for_timeout(1500)  # the dialogs about missing things come last

    def open_templates(self) -> None:
        """Open the templates browser at our pack."""
        self.page.locator(".comfyui-logo-wrapper, .comfy-menu-button-wrapper").first.click()
        self.page.get_by_role("menuitem", name="Browse Templates").click()
        self.dialog.get_by_text(PACK_NAME, exact=True).first.click()

    def api(self) -> dict:
        """Return the graph in the API form that the frontend would queue."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium with a new, empty profile."""
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium
        yield chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)


@pytest.fixture(scope="module")
def opened_frontend(browser, server, comfyui):
    """The frontend of one host, opened once."""
    page = browser.new_page(viewport={"width": 1600, "height": 900})
    page.set_default_timeout(30_000)
    frontend = Frontend(page, server, comfyui.folder.name)
    yield frontend
    SCREENSHOTS.mkdir(exist_ok=True)
    log = SCREENSHOTS / f"{comfyui.folder.name} console.txt"
    log.write_text("\n\n".join(frontend.noise) + "\n")
    page.close()


@pytest.fixture
def frontend(opened_frontend):
    """The open frontend; afterwards nothing new may stand in its console, nor a dialog be open."""
    yield opened_frontend
    while opened_frontend.dialog.count():
        opened_frontend.close_dialog()
    assert opened_frontend.unknown_noise() == []


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture
def graph(path) -> dict:
    return json.loads(path.read_text())


def comparable(api: dict) -> dict:
    """Return (class, inputs) by node id, without titles and seeds."""
    left_out = SEEDS | PLAYER
    return {
        key: (node["class_type"], {k: v for k, v in node["inputs"].items() if k not in left_out})
        for key, node in api.items()
    }


def shipped_api(path: Path) -> dict:
    return comparable(json.loads((path.parent / "api" / path.name).read_text()))


def runs_in(path: Path, host) -> bool:
    """Tell whether to press Run there: the first workflow everywhere, each other one once."""
    others = [other for other in WORKFLOWS if other != TEXT_TO_VIDEO]
    return path == TEXT_TO_VIDEO or host == HOSTS[others.index(path) % len(HOSTS)]


def test_dropped_workflow_is_the_shipped_api_form_and_runs(frontend, comfyui, path, graph):
    frontend.drop(path.name, graph)
    frontend.photograph(f"{path.stem} - dropped")
    assert frontend.dialog.count() == 0, frontend.dialog.first.inner_text()
    shown = frontend.page.evaluate("app.graph.nodes.map(n => [n.id, n.type])")
    assert sorted(shown) == sorted([n["id"], n["type"]] for n in graph["nodes"])
    assert comparable(frontend.api()) == shipped_api(path)
    if runs_in(path, comfyui):
        run_puts_the_clip_on_the_output_node(frontend, path)


def run_puts_the_clip_on_the_output_node(frontend, path):
    page = frontend.page
    page.evaluate(SHRINK)
    assert page.evaluate(SAVED) is None
    page.get_by_role("button", name="Run", exact=True).first.click()
    page.wait_for_function(SAVED, timeout=480_000)
    source = page.evaluate(SAVED)
    page.wait_for_function(
        "source => [...document.querySelectorAll('video')]"
        ".some(v => v.src.includes(source) && v.videoWidth === 64 && v.videoHeight === 64)",
        arg=source,
    )
    frontend.photograph(f"{path.stem} - run")
    assert frontend.dialog.count() == 0, frontend.dialog.first.inner_text()
    statuses = [e["status"] for e in json.loads(frontend.server.get("/history")).values()]
    assert statuses[-1]["status_str"] == "success"


def test_templates_browser_lists_every_workflow_with_its_thumbnail(frontend):
    frontend.open_templates()
    for path in WORKFLOWS:
        heading = frontend.dialog.get_by_role("heading", name=path.stem, exact=True)
        heading.scroll_into_view_if_needed()  # thumbnails out of sight are not loaded
        card = heading.locator("xpath=ancestor::*[.//img][1]")
        frontend.page.wait_for_function(
            "([card, ...size]) => [...card.querySelectorAll('img')].some(img => "
            "img.naturalWidth === size[0] && img.naturalHeight === size[1])",
            arg=[card.element_handle(), *Image.open(path.with_suffix(".jpg")).size],
        )
    frontend.photograph("templates")


def test_templates_browser_opens_a_workflow(frontend):
    before = frontend.page.evaluate(OPENED)
    frontend.open_templates()
    frontend.dialog.get_by_role("heading", name=TEXT_TO_VIDEO.stem, exact=True).click()
    frontend.wait_until_opened(before, json.loads(TEXT_TO_VIDEO.read_text()))
    assert frontend.dialog.count() == 0, frontend.dialog.first.inner_text()
    assert comparable(frontend.api()) == shipped_api(TEXT_TO_VIDEO)


@pytest.mark.parametrize("doc", DOCS, ids=lambda path: path.stem)
def test_help_button_shows_our_text(frontend, doc):
    title, first_paragraph, *_ = doc.read_text().split("\n\n")
    first_sentence = first_paragraph.replace("\n", " ").partition(". ")[0]
    frontend.page.evaluate(SELECT_NEW_NODE, doc.stem)
    frontend.page.get_by_test_id("info-button").click()
    shown = frontend.page.locator(".node-help-content")
    shown.get_by_role("heading", name=title.removeprefix("# "), exact=True).wait_for()
    frontend.photograph(f"{doc.stem} - help")
    text = " ".join(shown.inner_text().split())
    assert re.sub(r"[`*]", "", first_sentence) in text
    assert shown.locator("table").count() == doc.read_text().count("|---|---|\n")


def test_what_is_missing_is_named_and_offered(frontend):
    path = WORKFLOWS[0]
    graph = json.loads(path.read_text())
    model = next(m for n in graph["nodes"] for m in n["properties"].get("models", []))
    absent = model["name"].replace(".safetensors", "_absent.safetensors")
    frontend.drop_text(path.name, path.read_text().replace(model["name"], absent))
    frontend.dialog.get_by_text(f"{model['directory']} / {absent}").wait_for()
    offered = frontend.dialog.get_by_title(model["url"].replace(model["name"], absent))
    assert offered.first.is_visible()
    frontend.photograph("missing model")
    frontend.close_dialog()
    ours = DOCS[0].stem
    frontend.drop_text(path.name, path.read_text().replace(ours, "ADL_Absent"))
    frontend.dialog.get_by_text("ADL_Absent").first.wait_for()


def test_load_video_takes_an_upload_by_its_button_and_by_a_drop(frontend, tmp_path):
    page, file = frontend.page, tmp_path / "by button \u00e9.mp4"
    thin_files.write_source_video(file)
    page.evaluate(SELECT_NEW_NODE, "ADL_LoadVideo")
    with page.expect_file_chooser() as chooser:
        page.mouse.click(*page.evaluate(WIDGET, "upload"))
    chooser.value.set_files(file)
    uploaded_as(frontend, file.name, file.read_bytes())
    place, content = page.evaluate(WIDGET, "video"), list(file.read_bytes())
    page.evaluate(DROP, [content, "by drop.mp4", "video/mp4", place])
    uploaded_as(frontend, "by drop.mp4", file.read_bytes())
    frontend.photograph("uploads")


def uploaded_as(frontend, name: str, content: bytes):
    """Wait until the node has chosen the file, and ask the server for it."""
    chosen = "name => app.graph.nodes.at(-1).widgets.find(w => w.name === 'video').value === name"
    frontend.page.wait_for_function(chosen, arg=name)
    [node] = frontend.api().values()
    assert node["inputs"]["video"] == name
    query = urllib.parse.urlencode({"filename": name, "type": "input"})
    assert frontend.server.get(f"/view?{query}") == content
