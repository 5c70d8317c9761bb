"""Small weights files that ask for a lot: refused in one sentence, at once, and within bounds."""

import json
import shutil
import struct
import zipfile

import pytest
import torch
from animatediff_lightning.distill.models import base_model, embedding_files, headers, prompt_checks
from animatediff_lightning.distill.models.embeddings import load_embeddings
from animatediff_lightning.distill.models.prompt_weights import read_prompt
from animatediff_lightning.distill.train import config as train_config
from animatediff_lightning.motion_module import facts
from animatediff_lightning.motion_module.checkpoint import load
from animatediff_lightning.motion_module.content import CheckpointError
from animatediff_lightning.motion_module.module import MotionModule
from animatediff_lightning.samplers.text_length import to_common_length
from safetensors.torch import save_file

from . import random_models


def refusal(file):
    """Return why a file is not loaded."""
    with pytest.raises(CheckpointError) as caught:
        load(file)
    return str(caught.value)


def doubled(depth):
    """Return dicts that each hold the next one twice: 2^depth ways through a few of them."""
    part = {"w": torch.zeros(1)}
    for _ in range(depth):
        part = {"a": part, "b": part}
    return part


def nested(depth):
    value = ()
    for _ in range(depth):
        value = (value,)
    return {"w": torch.zeros(1), "deep": value}


def compressed(path):
    with zipfile.ZipFile(path) as plain:
        members = {name: plain.read(name) for name in plain.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, content)


def test_a_pickle_that_leads_in_a_million_ways_to_one_tensor_is_read_at_once(tmp_path):
    torch.save(doubled(40), tmp_path / "a.pt")
    assert refusal(tmp_path / "a.pt").startswith("a.pt ")


def test_a_pickle_that_nests_too_much_is_refused(tmp_path):
    # written by hand: Python's own pickler would not get so deep
    content = b"\x80\x02}X\x01\x00\x00\x00w" + b")" + b"\x85" * 300_000 + b"s."
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", content)
        archive.writestr("a/version", "3")
    assert "more nested values than a state dict has" in refusal(tmp_path / "a.pt")


def test_a_compressed_pickle_is_refused(tmp_path):
    torch.save({"w": torch.zeros(10_000)}, tmp_path / "a.ckpt")
    compressed(tmp_path / "a.ckpt")
    assert "is compressed, which PyTorch's own files never are" in refusal(tmp_path / "a.ckpt")


def test_a_tensor_that_claims_more_than_the_file_holds_is_refused(tmp_path):
    torch.save({"w": torch.zeros(1).expand(10**12)}, tmp_path / "a.pt")
    assert "not stored value by value" in refusal(tmp_path / "a.pt")


def test_old_pytorch_opens_no_pickle(tmp_path, monkeypatch):
    torch.save({"w": torch.zeros(1)}, tmp_path / "a.pt")
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    assert "PyTorch 2.5.1 cannot open safely" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ({"__metadata__": 5}, "is truncated, or is not a safetensors file"),
        ({"__metadata__": {"a": 1}}, "metadata that is not text"),
        ({"w": {"dtype": "F32", "shape": "abc", "data_offsets": [0, 0]}}, "a shape that is none"),
        ({"w": {"dtype": "F32", "shape": [0], "data_offsets": "ab"}}, "is truncated, or is not a"),
        ({"w" * 600: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, "longer than 512"),
    ],
)
def test_a_header_with_strange_types_is_refused(tmp_path, header, sentence):
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(CheckpointError, match=sentence):
        facts.describe_header(tmp_path / "a.safetensors")


def test_a_header_of_absurd_depth_is_refused(tmp_path):
    text = b"[" * 100_000
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(CheckpointError, match="is truncated, or is not a safetensors file"):
        facts.describe_header(tmp_path / "a.safetensors")


@pytest.mark.parametrize("positions", [10**6, 10**30, "1" * 5000])
def test_positions_beyond_any_motion_module_are_not_built(tmp_path, thin_config, positions):
    module = MotionModule(thin_config())
    tensors = {k: t for k, t in module.state_dict().items() if not k.endswith(".pe")}
    told = {"max_frames": str(positions), "num_heads": "4", "norm_groups": "8"}
    save_file(tensors, tmp_path / "a.safetensors", metadata=told)
    assert "is said to have positions for" in (found := refusal(tmp_path / "a.safetensors")) or (
        "is not a whole number" in found
    )


def test_errors_show_names_that_a_terminal_can_show(tmp_path, thin_config):
    tensors = MotionModule(thin_config()).state_dict()
    name = "down_blocks.0.motion_modules.0.\x1b[31m" + "x" * 300
    save_file({**tensors, name: torch.zeros(1)}, tmp_path / "a.safetensors")
    found = refusal(tmp_path / "a.safetensors")
    assert "\x1b" not in found
    assert len(found) < 400


# ---- base models, embeddings, prompts and configs ------------------------------------------------


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    return random_models.write(tmp_path_factory.mktemp("models") / "m").base


@pytest.mark.parametrize(
    ("part", "changes", "sentence"),
    [
        ("unet", {"layers_per_block": 10**6}, "has a layers_per_block beyond 64"),
        ("text_encoder", {"num_hidden_layers": 10**6}, "has a num_hidden_layers beyond 64"),
        ("unet", {"block_out_channels": [32] * 100}, "has a block_out_channels beyond"),
        ("vae", {"latent_channels": 10**9}, "has a latent_channels beyond"),
        ("text_encoder", {"attn_implementation": "evil/repo"}, "names a kernel of the hub"),
        ("unet", None, "holds no object"),
    ],
)
def test_a_config_that_asks_for_too_much_is_refused(base_folder, tmp_path, part, changes, sentence):
    folder = shutil.copytree(base_folder, tmp_path / "base")
    file = folder / part / "config.json"
    config = json.loads(file.read_text())
    file.write_text('"evil/repo"' if changes is None else json.dumps(config | changes))
    with pytest.raises(ValueError, match=sentence):
        base_model.load_base(folder)
    if part == "unet":
        with pytest.raises(ValueError, match=sentence):
            headers.empty_unet(folder)


def test_links_that_lead_in_circles_are_followed_once(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(tmp_path)
    (tmp_path / "in").mkdir()
    torch.save({"emb_params": torch.zeros(2, 8)}, tmp_path / "in" / "cat.pt")
    assert embedding_files.find(tmp_path, "cat") == tmp_path / "in" / "cat.pt"
    with pytest.raises(ValueError, match="the folder holds cat"):
        embedding_files.find(tmp_path, "dog")


@pytest.mark.parametrize(
    ("vectors", "sentence"),
    [
        (torch.zeros(10**5, 8), "is not a textual inversion"),
        (torch.zeros(0), "is not a textual inversion"),
        (torch.zeros(1, 8).expand(10**12, 8), "not stored value by value"),
        (torch.eye(8).to_sparse(), "not stored value by value"),
        (torch.full((1, 8), torch.nan), "NaN or infinity"),
    ],
)
def test_an_embedding_that_is_none_is_refused(tmp_path, vectors, sentence):
    torch.save({"emb_params": vectors}, tmp_path / "cat.pt")
    with pytest.raises(ValueError, match=sentence):
        load_embeddings(tmp_path, ["cat"], 8)


@pytest.mark.parametrize("prompt", ["(" * 101 + "a" + ")" * 101, "a" * 20_001])
def test_a_prompt_beyond_all_use_is_refused(prompt):
    with pytest.raises(ValueError, match="are read"):
        prompt_checks.check_syntax(prompt, None)


def test_commas_behind_a_name_are_read_at_once():
    name = "embedding:cat" + "," * 10_000 + "a"
    assert [p.text for p in read_prompt(name)] == [name.removeprefix("embedding:")]


def test_prompts_without_a_common_length_are_refused():
    chunks = [torch.zeros(1, 77 * n, 1) for n in (7, 11, 13, 17)]
    with pytest.raises(ValueError, match="shorten the longest"):
        to_common_length(chunks)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a = " + "[" * 5000, "is not valid TOML"),
        ("a" + ".a" * 20_000 + " = 1", "a key of more than 32 parts"),
        ("#" * (2**20 + 1), "is larger than"),
    ],
)
def test_a_config_file_that_asks_for_too_much_is_refused(tmp_path, text, sentence):
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(train_config.ConfigError, match=sentence):
        train_config.read_config(tmp_path / "run.toml")
