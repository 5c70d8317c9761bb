"""The shipped workflow files, read without a host: well-formed, downloadable, of a piece."""

import importlib.util
import itertools
import json
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
# the frontend offers a download from these only, and of these file types only
DOWNLOAD_HOSTS = {"huggingface.co", "civitai.com", "localhost"}
DOWNLOAD_TYPES = {".safetensors", ".sft"}
MODEL_TYPES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin")
FRONTEND_NODES = {"MarkdownNote", "Note", "Reroute", "PrimitiveNode"}  # never sent to the server
# each is in the oldest host that we support and in the newest that we test
CORE_NODES = {
    "BasicGuider",
    "BasicScheduler",
    "Canny",
    "CFGGuider",
    "CheckpointLoaderSimple",
    "CLIPTextEncode",
    "ControlNetApplyAdvanced",
    "ControlNetLoader",
    "CreateVideo",
    "EmptyLatentImage",
    "GetImageSize",
    "KSamplerSelect",
    "LoraLoaderModelOnly",
    "PreviewImage",
    "RandomNoise",
    "SamplerCustomAdvanced",
    "SaveVideo",
    "VAEDecode",
}
CARD_LETTERS = 30  # on a card of the Templates browser, frontends 1.49 and 1.58
TITLE_HEIGHT = 30  # the frontend draws a node's title above its position
GAP = 10  # so that two nodes are seen to be two
AFTER_SEEDS = ("randomize", "fixed")  # follow each seed in the UI form only
OUR_NODES = {path.stem for path in (WORKFLOWS.parent / "web" / "docs").glob("*.md")}


@pytest.fixture(params=sorted(WORKFLOWS.glob("*.json")), ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture
def graph(path) -> dict:
    """The UI form: a list of nodes, and links [id, from, slot, to, slot, type]."""
    return json.loads(path.read_text())


@pytest.fixture
def api(path) -> dict:
    """The API form of the same workflow: class and inputs by node id."""
    return json.loads((WORKFLOWS / "api" / path.name).read_text())


def models(graph: dict) -> list[dict]:
    return [m for node in graph["nodes"] for m in node["properties"].get("models", [])]


def widgets(graph: dict, kind: str) -> list[dict]:
    """Return {widget: value} of every node of a class."""
    found = []
    for node in (n for n in graph["nodes"] if n["type"] == kind):
        names = [port["name"] for port in node["inputs"] if "widget" in port]
        values = [v for v in node["widgets_values"] if v not in AFTER_SEEDS]
        found.append(dict(zip(names, values, strict=True)))
    return found


def linked_inputs(graph: dict) -> dict[tuple[str, str], list]:
    """Return {(node, input): [source node, slot]} in the API form's words."""
    links = {link[0]: link for link in graph["links"]}
    return {
        (str(node["id"]), port["name"]): [str(links[port["link"]][1]), links[port["link"]][2]]
        for node in graph["nodes"]
        for port in node["inputs"]
        if port["link"] is not None
    }


def test_there_are_workflows_and_no_stray_api_form():
    names = {path.name for path in WORKFLOWS.glob("*.json")}
    assert names
    assert names == {path.name for path in (WORKFLOWS / "api").glob("*.json")}


def test_ids_are_unique_and_the_last_ones_right(graph):
    nodes = [node["id"] for node in graph["nodes"]]
    links = [link[0] for link in graph["links"]]
    assert len(set(nodes)) == len(nodes)
    assert len(set(links)) == len(links)
    assert graph["last_node_id"] == max(nodes)
    assert graph["last_link_id"] == max(links)
    assert graph["version"] == 0.4
    orders = sorted(node["order"] for node in graph["nodes"])
    assert orders == list(range(len(nodes)))


def test_both_ends_of_every_link_know_it(graph):
    listed = {(link[0], *link[1:3]) for link in graph["links"]}
    sent = {
        (link, node["id"], slot)
        for node in graph["nodes"]
        for slot, port in enumerate(node["outputs"])
        for link in port["links"] or []
    }
    assert sent == listed
    received = {
        (port["link"], node["id"], slot, port["type"])
        for node in graph["nodes"]
        for slot, port in enumerate(node["inputs"])
        if port["link"] is not None
    }
    assert received == {(link[0], *link[3:]) for link in graph["links"]}
    nodes = {node["id"]: node for node in graph["nodes"]}
    for _, source, slot, _, _, kind in graph["links"]:
        assert nodes[source]["outputs"][slot]["type"] == kind


def test_links_run_forwards(graph):
    order = {node["id"]: node["order"] for node in graph["nodes"]}
    assert all(order[link[1]] < order[link[3]] for link in graph["links"])


def test_every_model_can_be_downloaded_from_the_missing_models_dialog(graph):
    assert models(graph)
    for model in models(graph):
        url = urlsplit(model["url"])
        assert url.scheme == "https" or url.hostname == "localhost", url
        assert url.hostname in DOWNLOAD_HOSTS
        assert Path(url.path).suffix in DOWNLOAD_TYPES
        assert set(model) >= {"name", "url", "directory"}
        assert Path(url.path).name == model["name"]


def test_chosen_files_are_the_downloadable_ones(graph):
    for node in graph["nodes"]:
        chosen = {
            value
            for value in node.get("widgets_values", [])
            if isinstance(value, str) and value.endswith(MODEL_TYPES)
        }
        assert chosen == {model["name"] for model in node["properties"].get("models", [])}


def test_only_core_nodes_and_ours(graph):
    used = {node["type"] for node in graph["nodes"]}
    assert used <= CORE_NODES | FRONTEND_NODES | OUR_NODES
    assert used & OUR_NODES


def test_api_form_has_the_same_nodes_and_links(graph, api):
    nodes = {str(n["id"]): n["type"] for n in graph["nodes"] if n["type"] not in FRONTEND_NODES}
    assert nodes == {key: node["class_type"] for key, node in api.items()}
    links = {
        (key, name): value
        for key, node in api.items()
        for name, value in node["inputs"].items()
        if isinstance(value, list)
    }
    assert links == linked_inputs(graph)


def test_api_form_has_the_same_values(graph, api):
    for node in graph["nodes"]:
        if node["type"] in FRONTEND_NODES:
            continue
        names = [port["name"] for port in node["inputs"] if "widget" in port]
        values = [v for v in node["widgets_values"] if v not in AFTER_SEEDS]
        assert len(names) == len(values)
        inputs = api[str(node["id"])]["inputs"]
        for name, value in zip(names, values, strict=True):
            assert isinstance(inputs[name], list) or inputs[name] == value


def test_note_links_every_file_and_names_its_folder(graph):
    (note,) = [n["widgets_values"][0] for n in graph["nodes"] if n["type"] == "MarkdownNote"]
    for model in models(graph):
        assert f"- models/{model['directory']}: [{model['name']}]({model['url']})\n" in note


def test_no_prompt_is_dead(graph):
    """A negative prompt only stands where cfg reads it."""
    for guider in widgets(graph, "CFGGuider"):
        assert guider["cfg"] > 1
    guiders = len(widgets(graph, "BasicGuider")) + len(widgets(graph, "CFGGuider"))
    assert guiders == 1
    prompts = len(widgets(graph, "CLIPTextEncode")) + len(widgets(graph, "ADL_PromptTravel"))
    assert prompts == 1 + len(widgets(graph, "CFGGuider"))


def test_numbers_that_belong_together_agree(graph):
    (latent,) = widgets(graph, "EmptyLatentImage")
    for kind in ("ADL_PromptTravel", "ADL_PlotContext"):
        for node in widgets(graph, kind):
            assert node["num_frames"] == latent["batch_size"]
    for noise, context in itertools.product(
        widgets(graph, "ADL_VideoNoise"), widgets(graph, "ADL_SlidingContext")
    ):
        for name in ("context_length", "context_overlap"):
            assert noise[name] == context[name]


def test_name_tells_the_steps(path, graph):
    """A number of steps in the name is that of the file, and of the scheduler."""
    (scheduler,) = widgets(graph, "ADL_LightningScheduler") or widgets(graph, "BasicScheduler")
    for promised in re.findall(r"(\d+) steps", path.stem):
        assert scheduler["steps"] == int(promised)
    for model in models(graph):
        for distilled in re.findall(r"lightning_(\d)step", model["name"]):
            assert scheduler["steps"] == int(distilled)


def test_name_is_a_title_that_a_card_shows_whole(path):
    """The Templates browser shows the file's name on a card; its category names the pack."""
    assert len(path.stem) <= CARD_LETTERS


def test_nodes_do_not_overlap(graph):
    boxes = [(n["id"], *n["pos"], *n["size"]) for n in graph["nodes"]]
    for (one, x, y, w, h), (other, x2, y2, w2, h2) in itertools.combinations(boxes, 2):
        beside = x + w <= x2 or x2 + w2 <= x
        below = y + h + GAP <= y2 - TITLE_HEIGHT or y2 + h2 + GAP <= y - TITLE_HEIGHT
        assert beside or below, (one, other)


def test_every_node_tells_which_pack_it_is_of(graph):
    project = tomllib.loads((WORKFLOWS.parent / "pyproject.toml").read_text())["project"]
    for node in graph["nodes"]:
        if node["type"] in OUR_NODES:
            assert node["properties"]["cnr_id"] == project["name"]
            assert node["properties"]["ver"] == project["version"]
        elif node["type"] in CORE_NODES:
            assert node["properties"]["cnr_id"] == "comfy-core"


def test_the_app_shows_prompt_seed_and_size_and_the_clip(graph):
    nodes = {node["id"]: node for node in graph["nodes"]}
    app = graph["extra"]["linearData"]
    shown = []
    for number, name in app["inputs"]:
        (port,) = [p for p in nodes[number]["inputs"] if p.get("widget") == {"name": name}]
        assert port["link"] is None, "a linked widget cannot be set"
        shown.append(port.get("label", name))
    assert {"prompt", "prompts"} & set(shown)
    assert {"seed", "width", "height"} <= set(shown)
    assert len(shown) == len(set(shown)), "two inputs of one name cannot be told apart"
    assert [nodes[number]["type"] for number in app["outputs"]] == ["SaveVideo"]


def test_the_blueprints_are_those_of_the_workflows():
    """docs/make_blueprints.py makes them."""
    spec = importlib.util.spec_from_file_location(
        "make_blueprints", WORKFLOWS.parent / "docs" / "make_blueprints.py"
    )
    maker = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = maker
    spec.loader.exec_module(maker)
    files = {file.stem: file for file in (WORKFLOWS.parent / "subgraphs").glob("*.json")}
    assert files.keys() == {blueprint.name for blueprint in maker.BLUEPRINTS}
    for blueprint in maker.BLUEPRINTS:
        assert json.loads(files[blueprint.name].read_text()) == maker.make(blueprint)


def test_thumbnail_is_small(path):
    thumbnail = path.with_suffix(".jpg")
    assert thumbnail.read_bytes()[:3] == b"\xff\xd8\xff"
    assert thumbnail.stat().st_size < 60_000
