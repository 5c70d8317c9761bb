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
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="NO CHROMIUM FOUND: the frontend was not tested; install chromium or set CHROMIUM",
    ),
]

PACK = Path(__file__).resolve().parents[1]
PACK_NAME = "ComfyUI-AnimateDiff-Lightning"
SMOKE_WORKFLOW = "Text to video in 4 steps"
WORKFLOWS = sorted((PACK / "workflows").glob("*.json"))
TEXT_TO_VIDEO = PACK / "workflows" / f"{SMOKE_WORKFLOW}.json"
DOCS = sorted((PACK / "web" / "docs").glob("*.md"))
SCREENSHOTS = PACK / "screenshots"
FRONTEND_NODES = {"MarkdownNote", "Note", "Reroute", "PrimitiveNode"}
SEEDS = {"seed", "noise_seed"}
PLAYER = {"video-preview"}  # the frontend sends its player along, and the server leaves it out
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
]

# what the console says of every pack on an offline host
KNOWN_NOISE = {
    "no file of the user's own yet": r"404 .*/(user\.css|favicon\.ico|api/userdata[?/])",
    "help in the reader's language comes before ours": r"404 .*/docs/\w+/en\.md",
    "nothing outside this machine is let in": r"ERR_FAILED https://|Error fetching file size",
    "a bug of frontend 1.49 at its start": r"ComfyApp graph accessed before initialization",
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
UNLINK_AND_SET = """([kind, name, value]) => {
  const node = app.graph.nodes.find(node => node.type === kind);
  const place = node.inputs.findIndex(input => input.name === name);
  if (node.inputs[place].link != null) node.disconnectInput(place);
  node.widgets.find(widget => widget.name === name).value = value;
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
# whether a node that samples shows what it has made so far
PREVIEWED = """() => app.graph.nodes.some(node =>
  /Sampler/.test(node.type) && (app.nodePreviewImages[node.id]?.length || node.imgs?.length))"""
# where a widget of the newest node lies on the screen
WIDGET = """name => {
  const node = app.graph.nodes.at(-1);
  const drawn = document.querySelector(`[data-node-id="${node.id}"]`);  // with Nodes 2.0
  if (drawn) {
    const button = drawn.querySelector('[class*=folder-search]') ?? drawn;
    const place = (name === 'upload' ? button : drawn).getBoundingClientRect();
    return [place.x + place.width / 2, place.y + place.height / 2];
  }
  const widget = node.widgets.find(widget => widget.name === name);
  const {scale, offset} = app.canvas.ds;
  const box = app.canvas.canvas.getBoundingClientRect();
  const [x, y] = [node.pos[0] + node.size[0] / 2, node.pos[1] + widget.last_y + 10];
  return [box.x + (x + offset[0]) * scale, box.y + (y + offset[1]) * scale];
}"""
TOAST = ".p-toast-message, [data-testid=toast]"
MARK_NODES = "app.graph.nodes.forEach(node => { node.isOld = true; })"


class Frontend:
    """ComfyUI's page in a browser, and what its console has said."""

    def __init__(self, page, server, host_name: str) -> None:
        self.page, self.server, self.host_name = page, server, host_name
        self.noise: list[str] = []
        self.asked: set[str] = set()  # every address
        page.on("request", lambda request: self.asked.add(request.url))
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.noise.append(f"uncaught {error.stack}"))
        page.route(re.compile("^https:"), lambda route: route.abort())
        page.goto(f"http://{server.address}")
        page.wait_for_function(
            "document.querySelector('#graph-canvas') && window.app?.canvas && app.extensionManager"
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
        self.page.evaluate(MARK_NODES)
        self.drop_text(name, json.dumps(graph))
        self.wait_until_opened(graph)

    def wait_until_opened(self, graph: dict) -> None:
        """Wait until none of the nodes that were marked is left, and as many as in `graph`."""
        self.page.wait_for_function(
            "count => app.graph.nodes.length === count && app.graph.nodes.every(n => !n.isOld)",
            arg=len(graph["nodes"]),
        )
        self.page.wait_for_timeout(1500)  # the dialogs about missing things come last

    def open_templates(self) -> None:
        """Open the templates browser at our pack."""
        button = self.page.get_by_role("button", name="Templates", exact=True)
        if button.count():  # newer frontends have it in their sidebar
            button.first.click()
        else:
            self.page.locator(".comfyui-logo-wrapper, .comfy-menu-button-wrapper").first.click()
            self.page.get_by_role("menuitem", name="Browse Templates").click()
        self.dialog.get_by_text(PACK_NAME, exact=True).first.click()

    def api(self) -> dict:
        """Return the graph in the API form that the frontend would queue."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def node_classes(self) -> dict[str, set[str]]:
        """Return the names of the inputs that the host knows, by the class of a node."""
        info = json.loads(self.server.get("/object_info"))
        return {
            name: {key for part in node["input"].values() for key in part}
            for name, node in info.items()
        }


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
    frontend = Frontend(page, server, comfyui.name)
    yield frontend
    SCREENSHOTS.mkdir(exist_ok=True)
    log = SCREENSHOTS / f"{comfyui.name} console.txt"
    log.write_text("\n\n".join(frontend.noise) + "\n")
    page.close()


@pytest.fixture
def frontend(opened_frontend):
    """The open frontend; afterwards nothing new may stand in its console, nor a dialog be open."""
    yield opened_frontend
    while opened_frontend.dialog.count():
        opened_frontend.close_dialog()
    assert opened_frontend.unknown_noise() == []


@pytest.fixture(
    params=[
        pytest.param(path, marks=[pytest.mark.smoke] if path.stem == SMOKE_WORKFLOW else [])
        for path in WORKFLOWS
    ],
    ids=lambda path: path.stem,
)
def path(request) -> Path:
    return request.param


@pytest.fixture
def graph(path) -> dict:
    return json.loads(path.read_text())


def guaranteed(api: dict, shipped: dict, classes: dict[str, set[str]]) -> dict:
    """Return (class, inputs) by node id: the inputs of the shipped form that this host knows.

    Hosts add inputs, and make others part of new ones; titles and seeds are left out as well.
    """
    return {
        key: (
            node["class_type"],
            {
                name: value
                for name, value in node["inputs"].items()
                if name in shipped[key]["inputs"]
                and name in classes[node["class_type"]]
                and name not in SEEDS | PLAYER
            },
        )
        for key, node in api.items()
    }


def links(api: dict) -> list[str]:
    """Return where the links of a graph come from, sorted."""
    values = [value for node in api.values() for value in node["inputs"].values()]
    return sorted(str(value) for value in values if isinstance(value, list))


def is_the_shipped_form(frontend, path: Path) -> None:
    shipped = json.loads((path.parent / "api" / path.name).read_text())
    shown, classes = frontend.api(), frontend.node_classes()
    assert shown.keys() == shipped.keys()
    assert guaranteed(shown, shipped, classes) == guaranteed(shipped, shipped, classes)
    assert links(shown) == links(shipped)


def runs_in(path: Path, host) -> bool:
    """Tell whether to press Run there: the first workflow everywhere, each other one once."""
    others = [other for other in WORKFLOWS if other != TEXT_TO_VIDEO]
    return path == TEXT_TO_VIDEO or host == HOSTS[others.index(path) % len(HOSTS)]


def test_dropped_workflow_is_the_shipped_api_form_and_runs(frontend, comfyui, path, graph):
    frontend.drop(path.name, graph)
    frontend.photograph(f"{path.stem} - dropped")
    assert frontend.dialog.count() == 0, frontend.dialog.first.inner_text()
    shown = frontend.page.evaluate("app.graph.nodes.map(n => [String(n.id), n.type])")
    assert sorted(shown) == sorted([str(n["id"]), n["type"]] for n in graph["nodes"])
    is_the_shipped_form(frontend, path)
    if runs_in(path, comfyui):
        run_puts_the_clip_on_the_output_node(frontend, path)


def run_puts_the_clip_on_the_output_node(frontend, path):
    page = frontend.page
    page.evaluate(SHRINK)
    assert page.evaluate(SAVED) is None
    page.get_by_role("button", name="Run", exact=True).first.click()
    page.wait_for_function(PREVIEWED, timeout=480_000)
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


@pytest.mark.smoke
def test_a_warning_is_shown_on_its_node(frontend):
    graph = json.loads(TEXT_TO_VIDEO.read_text())
    frontend.drop(TEXT_TO_VIDEO.name, graph)
    page = frontend.page
    page.evaluate(SHRINK)
    page.evaluate(UNLINK_AND_SET, ["ADL_LightningScheduler", "steps", 3])
    page.get_by_role("button", name="Run", exact=True).first.click()
    warning = page.locator(TOAST).get_by_text("distilled for 4 steps, not 3")
    warning.wait_for(timeout=120_000)
    while json.loads(frontend.server.get("/queue"))["queue_running"]:
        page.wait_for_timeout(500)
    page.wait_for_timeout(1000)  # newer frontends clear the text on the node when the run is over
    assert warning.is_visible()
    frontend.photograph("warning")
    page.evaluate(UNLINK_AND_SET, ["ADL_LightningScheduler", "steps", 4])
    page.get_by_role("button", name="Run", exact=True).first.click()
    warning.wait_for(state="detached", timeout=120_000)


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


@pytest.mark.smoke
def test_templates_browser_opens_a_workflow(frontend):
    frontend.page.evaluate(MARK_NODES)
    frontend.open_templates()
    frontend.dialog.get_by_role("heading", name=TEXT_TO_VIDEO.stem, exact=True).click()
    frontend.wait_until_opened(json.loads(TEXT_TO_VIDEO.read_text()))
    assert frontend.dialog.count() == 0, frontend.dialog.first.inner_text()
    is_the_shipped_form(frontend, TEXT_TO_VIDEO)


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


@pytest.mark.smoke
def test_what_is_missing_is_named_and_offered(frontend):
    path, page = WORKFLOWS[0], frontend.page
    graph = json.loads(path.read_text())
    model = next(m for n in graph["nodes"] for m in n["properties"].get("models", []))
    absent = model["name"].replace(".safetensors", "_absent.safetensors")
    url = model["url"].replace(model["name"], absent)
    frontend.drop_text(path.name, path.read_text().replace(model["name"], absent))
    toast = page.get_by_text(f"{absent} is missing")  # of newer frontends
    frontend.dialog.first.or_(toast).wait_for()
    if toast.count():
        page.get_by_role("button", name="View details").first.click()
        download = page.get_by_text("Download", exact=True).first
        download.wait_for()
        panel = page.locator("div").filter(has=download).filter(has_text="Missing Models").last
        assert panel.get_by_text(absent).is_visible()
        assert panel.get_by_text(model["directory"], exact=True).is_visible()
        assert url in frontend.asked, "its address was not looked at"
        frontend.photograph("missing model")
        page.locator("#tab-errors").locator("xpath=preceding::button[1]").click()
        panel.wait_for(state="detached")
    else:
        frontend.dialog.get_by_text(f"{model['directory']} / {absent}").wait_for()
        assert frontend.dialog.get_by_title(url).first.is_visible()
        frontend.photograph("missing model")
        frontend.close_dialog()
    ours = DOCS[0].stem
    frontend.drop_text(path.name, path.read_text().replace(ours, "ADL_Absent"))
    named = page.get_by_text("Missing node: ADL_Absent")  # a toast of newer frontends
    named.or_(frontend.dialog.get_by_text("ADL_Absent")).first.wait_for()
    frontend.photograph("missing node")


def test_load_video_takes_an_upload_by_its_button_and_by_a_drop(frontend, tmp_path):
    page, file = frontend.page, tmp_path / "by button \u00e9.mp4"
    thin_files.write_source_video(file)
    page.evaluate(SELECT_NEW_NODE, "ADL_LoadVideo")
    page.wait_for_function("app.graph.nodes.at(-1).previewMediaType === 'video'")
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


BLUEPRINTS = sorted((PACK / "subgraphs").glob("*.json"))
# the widgets that a user sees on the node, by their labels
SHOWN = "app.graph.nodes[0].widgets.map(widget => widget.label ?? widget.name)"
INTO_SAVE_VIDEO = """() => {
  const [node] = app.graph.nodes, save = LiteGraph.createNode('SaveVideo');
  app.graph.add(save);
  save.pos = [node.pos[0] + node.size[0] + 80, node.pos[1]];
  node.connect(0, save, 0);
}"""


@pytest.mark.smoke
def test_the_host_lists_our_blueprints(server, comfyui):
    if not (comfyui.folder / "app" / "subgraph_manager.py").is_file():
        pytest.skip("this host knows no blueprints")
    listed = json.loads(server.get("/global_subgraphs")).values()
    ours = {e["name"] for e in listed if e["info"]["node_pack"] == f"custom_nodes.{PACK_NAME}"}
    assert ours == {path.stem for path in BLUEPRINTS}


def test_the_search_finds_a_node_by_its_alias_and_places_a_blueprint(frontend):
    page, kind = frontend.page, "ADL_VideoNoise"
    [node] = json.loads(frontend.server.get(f"/object_info/{kind}")).values()
    if not node.get("search_aliases"):
        pytest.skip("this host knows no aliases")
    page.evaluate("app.graph.clear(); app.canvas.ds.reset()")
    page.mouse.dblclick(800, 500)
    page.locator("input:focus").fill(node["search_aliases"][0])
    page.get_by_text(node["display_name"], exact=True).first.wait_for()
    page.locator("input:focus").fill(BLUEPRINTS[0].stem)
    page.get_by_text(BLUEPRINTS[0].stem, exact=True).first.wait_for()
    frontend.photograph("search")
    page.keyboard.press("Enter")
    page.mouse.click(700, 300)  # the node follows the mouse until then
    page.wait_for_function("title => app.graph.nodes[0]?.title === title", arg=BLUEPRINTS[0].stem)


@pytest.mark.parametrize("blueprint", BLUEPRINTS, ids=lambda path: path.stem)
def test_a_blueprint_is_one_node_that_samples_as_its_workflow_does(frontend, comfyui, blueprint):
    if not (comfyui.folder / "app" / "subgraph_manager.py").is_file():
        pytest.skip("this host knows no blueprints")
    graph = json.loads(blueprint.read_text())
    frontend.drop(blueprint.name, graph)
    labels = [port["label"] for port in graph["nodes"][0]["inputs"]]
    shown = frontend.page.evaluate(SHOWN)
    assert [label for label in shown if label in labels] == labels, shown
    frontend.page.evaluate(INTO_SAVE_VIDEO)
    frontend.page.wait_for_timeout(500)
    frontend.photograph(f"{blueprint.stem} - blueprint")
    api = frontend.api()
    inner = [n["type"] for n in graph["definitions"]["subgraphs"][0]["nodes"]]
    assert sorted(n["class_type"] for n in api.values()) == sorted([*inner, "SaveVideo"])
    most = {"width": 64, "height": 64, "batch_size": 4, "max_frames": 4}
    for node in api.values():
        for name in most.keys() & node["inputs"].keys():
            if not isinstance(node["inputs"][name], list):
                node["inputs"][name] = most[name]
    _, entry = frontend.server.run(api)
    assert entry["status"]["status_str"] == "success", entry["status"]
