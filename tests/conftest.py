"""What the tests share: thin models, the ComfyUI hosts on this machine, and a real server."""

import json
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from animatediff_lightning.distill.files.cache import CACHE_VARIABLE
from animatediff_lightning.motion_module import checkpoint
from animatediff_lightning.motion_module.config import MotionModuleConfig
from animatediff_lightning.motion_module.module import MotionModule
from filelock import FileLock

from . import thin_files

PACK = Path(__file__).resolve().parents[1]
PACK_NAME = "ComfyUI-AnimateDiff-Lightning"

# thin models gain nothing from more threads, and lose tenfold where the cores are shared; so do the
# hosts and servers that are started from here, two test files at a time
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """The folder of a distillation's two pools."""
    from . import distil_files  # it imports the trainer, which takes seconds

    return distil_files.write_pools(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="session")
def thin_config():
    """Factory of configs with AnimateDiff's structure over any channels; two levels by default."""

    def make(channels=(32, 64), layers=1, mid=True, **options) -> MotionModuleConfig:
        return MotionModuleConfig(
            down_blocks=tuple((c,) * layers for c in channels),
            mid_block=(channels[-1],) if mid else (),
            up_blocks=tuple((c,) * (layers + 1) for c in reversed(channels)),
            **{"max_frames": 16, "num_heads": 4, "norm_groups": 8} | options,
        )

    return make


@pytest.fixture(scope="session")
def random_module():
    """Factory of motion modules whose every weight, proj_out and norms too, is random."""

    def make(config: MotionModuleConfig, seed: int = 0) -> MotionModule:
        module = MotionModule(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                scale = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.2
                offset = float("norm" in name and name.endswith("weight"))
                parameter.copy_(offset + scale * noise)
        return module.eval().requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def thin_unet():
    """Factory of diffusers UNets: attention on all levels but the last, as in SD1.5."""

    from diffusers import UNet2DConditionModel  # slow to import, and not in a ComfyUI host

    def make(channels=(32, 64), layers=1, seed: int = 0) -> UNet2DConditionModel:
        torch.manual_seed(seed)
        attended = len(channels) - 1
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=channels,
            layers_per_block=layers,
            down_block_types=("CrossAttnDownBlock2D",) * attended + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attended,
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        return unet.eval().requires_grad_(False)

    return make


@dataclass(frozen=True)
class Host:
    """A ComfyUI folder, the interpreter that has its packages, and how it handles weights.

    mode: "legacy", or "dynamic" for an emulation of dynamic VRAM (tests/host/dynamic_vram.py).
    """

    folder: Path
    python: str
    mode: str = "legacy"

    @property
    def name(self) -> str:
        """What reports and screenshots call it."""
        return f"{self.folder.name} {self.mode}"

    @property
    def environment(self) -> dict[str, str]:
        """What its processes run with."""
        return os.environ | {"ADL_HOST_MODE": self.mode}


def find_hosts() -> list[Host]:
    """Return the hosts in COMFYUI_PATH (":" between), else all ~/comfy/ComfyUI*; a mode each."""
    named = os.environ.get("COMFYUI_PATH")
    default = sorted((Path.home() / "comfy").glob("ComfyUI*"))
    hosts = []
    for folder in map(Path, named.split(":")) if named else default:
        python = os.environ.get("COMFYUI_PYTHON") or str(folder / ".venv" / "bin" / "python")
        if not (folder / "main.py").is_file() or not Path(python).exists():
            continue
        hosts.append(Host(folder, python))
        if "class ModelPatcherDynamic" in (folder / "comfy" / "model_patcher.py").read_text():
            hosts.append(Host(folder, python, "dynamic"))
    return hosts


HOSTS = find_hosts()
NO_HOST = (
    "NO COMFYUI FOUND: the nodes were not tested; set COMFYUI_PATH (and COMFYUI_PYTHON), "
    "or install ComfyUI with comfy-cli"
)


def pytest_addoption(parser):
    parser.addoption(
        "--hosts",
        choices=("smoke", "all"),
        default="smoke",
        help="in every ComfyUI: the tests marked smoke (default), or all of them",
    )
    parser.addoption(
        "--host-mode", choices=("legacy", "dynamic"), help="only hosts in this mode; default: both"
    )


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(config, items):
    """Mark the tests that run in a ComfyUI, and leave out those that were not asked for."""
    smoke, mode = config.getoption("--hosts") == "smoke", config.getoption("--host-mode")
    kept, left_out = [], []
    for item in items:
        if "comfyui" in item.fixturenames:
            item.add_marker("host")
        host = getattr(item, "callspec", None) and item.callspec.params.get("comfyui")
        unwanted = host is not None and (
            (smoke and not item.get_closest_marker("smoke")) or (mode and host.mode != mode)
        )
        (left_out if unwanted else kept).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


def pytest_terminal_summary(terminalreporter):
    """Say loudly whether the host tests could run, and which of them did."""
    if not HOSTS:
        terminalreporter.section(NO_HOST, red=True, bold=True)
        return
    names = ", ".join(host.name for host in HOSTS)
    terminalreporter.line(f"tested in ComfyUI: {names}")
    if terminalreporter.config.getoption("--hosts") == "smoke":
        terminalreporter.line("the smoke set only; all: python tests/host/matrix.py")


@pytest.fixture(
    scope="session",
    params=HOSTS or [None],
    ids=lambda h: h.name.replace(" ", "-") if h else "-",
)
def comfyui(request):
    """One host and mode after the other; skips where this machine has none."""
    if request.param is None:
        pytest.skip(NO_HOST)
    return request.param


@pytest.fixture(scope="module")
def miniature_cache(tmp_path_factory):
    """A cache of its own for the miniature's bases; gives the patch that made it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield patch


@pytest.fixture(scope="session")
def thin_checkpoint():
    """Path of an SD1.5 checkpoint with a thin UNet and random weights, made once a machine."""
    cache = Path.home() / ".cache" / "animatediff-lightning" / "tests"
    path = cache / "thin.safetensors"
    if not HOSTS:  # asked for before the host itself, by pytest's order of fixtures
        pytest.skip(NO_HOST)
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # several runs of pytest may start at once
        if not path.exists():
            script = Path(__file__).parent / "host" / "random_checkpoint.py"
            command = [HOSTS[0].python, script, HOSTS[0].folder, path, "thin"]
            subprocess.run(command, check=True, stdout=sys.stderr)
    return path


def node_text(message: bytes) -> dict | None:
    """Return what a binary message tells the user on a node, None where it is a picture."""
    kind, length = struct.unpack(">II", message[:8])
    if kind != 3:  # the host's BinaryEventTypes.TEXT
        return None
    node, text = message[8 : 8 + length].decode(), message[8 + length :].decode()
    return {"type": "text", "data": {"node": node, "text": text}}


class Server:
    """A ComfyUI server in a folder of its own, with this checkout linked in."""

    def __init__(self, host, base: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.log = base / "server.log"
        command = [
            host.python,
            "main.py",
            "--cpu",
            "--port",
            self.address.split(":")[1],
            "--base-directory",
            base,
            "--disable-auto-launch",
            "--database-url",
            f"sqlite:///{base}/comfyui.db",
            "--preview-method",
            "latent2rgb",
        ]
        frontend = os.environ.get("ADL_FRONTEND")  # the folder of another one than the host's
        command += ["--front-end-root", frontend] if frontend else []
        self.process = subprocess.Popen(
            command,
            cwd=host.folder,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            env=host.environment | {"HF_HUB_OFFLINE": "1"},
        )
        for _ in range(600):
            try:
                self.get("/system_stats")
                return
            except OSError:
                assert self.process.poll() is None, self.log.read_text()[-3000:]
                time.sleep(0.5)
        self.process.kill()
        raise TimeoutError(self.log.read_text()[-3000:])

    def get(self, path: str):
        """Return the body of a GET."""
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=60) as answer:
            return answer.read()

    def post(self, path: str, content: dict):
        """Return the decoded answer of a POST; an error answer is returned too."""
        body = json.dumps(content).encode()
        request = urllib.request.Request(f"http://{self.address}{path}", data=body)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            return json.loads(error.read())

    def run(self, workflow: dict, on_progress=None):
        """Queue a workflow and follow it; returns (messages, history entry)."""
        import websocket

        client = uuid.uuid4().hex
        stream = websocket.create_connection(f"ws://{self.address}/ws?clientId={client}")
        stream.settimeout(180)
        queued = self.post("/prompt", {"prompt": workflow, "client_id": client})
        assert "prompt_id" in queued, queued
        messages = []
        while True:
            text = stream.recv()
            message = json.loads(text) if isinstance(text, str) else node_text(text)
            if message is None:
                continue
            messages.append(message)
            if message["type"] == "progress" and on_progress is not None:
                on_progress(message["data"])
            if message["type"] in (
                "execution_success",
                "execution_error",
                "execution_interrupted",
            ):
                break
        stream.close()
        return messages, self.history(queued["prompt_id"])

    def history(self, prompt_id: str) -> dict:
        """Return the entry of a finished prompt, which comes a little after its last message."""
        for _ in range(50):
            history = json.loads(self.get(f"/history/{prompt_id}"))
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.1)
        raise TimeoutError("no history entry")

    def file(self, entry: dict, node: str) -> bytes:
        """Return the first file that an output node saved."""
        saved = next(v for v in entry["outputs"][node].values() if isinstance(v, list))[0]
        query = f"filename={saved['filename']}&subfolder={saved['subfolder']}&type={saved['type']}"
        return self.get(f"/view?{query}")


@pytest.fixture(scope="session")
def thin_motion_file(tmp_path_factory):
    """Path of a motion module file with random weights, of the thin checkpoint's shape."""
    config = MotionModuleConfig(
        down_blocks=((320,),) * 4, mid_block=(320,), up_blocks=((320, 320),) * 4
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("motion") / "thin.safetensors"
    checkpoint.save(MotionModule(config).half(), path)
    return path


def workflow_files() -> set[tuple[str, str]]:
    """Return the (model folder, file name) of every model that a shipped workflow names."""
    graphs = [json.loads(path.read_text()) for path in (PACK / "workflows").glob("*.json")]
    properties = [node["properties"] for graph in graphs for node in graph["nodes"]]
    return {(m["directory"], m["name"]) for p in properties for m in p.get("models", [])}


@pytest.fixture(scope="session")
def workflow_models(thin_checkpoint, thin_motion_file, tmp_path_factory):
    """Paths of thin files by the (model folder, file name) that a shipped workflow asks for."""
    thin = thin_files.write(tmp_path_factory.mktemp("thin"), thin_checkpoint, thin_motion_file)
    asked = {file: thin[file[0]] for file in workflow_files()}
    lcm = {f: thin["AnimateLCM"] for f in asked if f[0] == "animatediff_models" and "LCM" in f[1]}
    return asked | lcm


@pytest.fixture(scope="module")
def server(comfyui, workflow_models, thin_motion_file, tmp_path_factory):
    """A running server that has thin files under the names of the workflows, and two bad ones."""
    base = tmp_path_factory.mktemp("comfyui")
    for (folder, name), file in workflow_models.items():
        (base / "models" / folder).mkdir(parents=True, exist_ok=True)
        (base / "models" / folder / name).symlink_to(file)
    motion_modules = base / "models" / "animatediff_models"
    (motion_modules / "notes.txt").write_text("no motion module")
    (motion_modules / "broken.safetensors").write_bytes(thin_motion_file.read_bytes()[:1000])
    # without a video to choose, the frontend asks the server for the preview of "undefined"
    thin_files.write_source_video(base / "input" / "source.mp4")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / PACK_NAME).symlink_to(PACK)
    if comfyui.mode == "dynamic":  # as a pack of nodes, which a server imports before any model
        emulation = PACK / "tests" / "host" / "dynamic_vram_on_server.py"
        (base / "custom_nodes" / emulation.name).symlink_to(emulation)
    if os.environ.get("ADL_NODES_2"):
        settings = base / "user" / "default" / "comfy.settings.json"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps({"Comfy.VueNodes.Enabled": True}))
    server = Server(comfyui, base)
    assert (comfyui.mode == "dynamic") == ("dynamic VRAM is emulated" in server.log.read_text())
    yield server
    server.process.terminate()
    server.process.wait(30)
