"""Motion LoRAs inside a ComfyUI interpreter; each check prints one JSON line.

    PYTHON_OF_COMFYUI tests/host/lora_checks.py COMFYUI_FOLDER MODELS_FOLDER [CHECK ...]

tests/test_host_in_process.py starts it and turns each line into a test result.
"""

import contextlib
import gc
import json
from pathlib import Path

import host
from checking import (
    MOTION_FILE,
    OTHER_FILE,
    Graph,
    close,
    equal,
    main,
    refusal,
    small_budget,
    told,
    unload,
)

NO_MIDDLE_FILE = "v3.safetensors"
STRENGTH = 0.8


class LoraGraph(Graph):
    """The graph with motion LoRAs over its thin motion modules."""

    def start(self, comfyui, models, motion_folder):
        super().start(comfyui, models, motion_folder)
        import folder_paths

        self.folder = Path(motion_folder)
        host.random_motion_module(self.folder / NO_MIDDLE_FILE, mid_block=())
        self.lora_folder = self.folder / "loras"
        self.lora_folder.mkdir()
        write_lora("zoom.safetensors", rank=8, seed=1)
        write_lora("pan.ckpt", rank=4, seed=2)
        write_lora("zoom_diffusers.safetensors", rank=8, seed=1, rename=as_diffusers)
        (self.lora_folder / "notes.txt").write_text("no LoRA")
        folder_paths.add_model_folder_path("animatediff_motion_lora", str(self.lora_folder))
        folder_paths.filename_list_cache.clear()

    def with_lora(self, name="zoom.safetensors", strength=STRENGTH, module=None):
        """Return an ADL_MOTION_MODULE with a motion LoRA."""
        module = self.load() if module is None else module
        return self.nodes["ADL_LoadMotionLoRA"].execute(module, name, strength).result[0]

    def put(self, module, base=None):
        """Return a MODEL with an ADL_MOTION_MODULE."""
        base = self.base if base is None else base
        return self.nodes["ADL_ApplyMotionModule"].execute(base, module).result[0]


GRAPH = LoraGraph()


def as_diffusers(key):
    for theirs, ours in ((".attention_blocks.0", ".attn1"), (".attention_blocks.1", ".attn2")):
        key = key.replace(theirs, ours)
    return "unet." + key.replace(".temporal_transformer", "")


def write_lora(name, rank, seed, rename=str):
    """Write a motion LoRA of random weights for the thin motion module."""
    import safetensors.torch
    import torch

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, weight in GRAPH.weights().named_parameters():
        if ".attention_blocks." not in key or not key.endswith(".weight"):
            continue
        head, _, projection = key.removesuffix(".weight").rpartition(".to_")
        stem = rename(f"{head}.processor.to_{projection.removesuffix('.0')}_lora")
        out, width = weight.shape
        tensors[f"{stem}.down.weight"] = torch.randn(rank, width, generator=generator) / width**0.5
        tensors[f"{stem}.up.weight"] = torch.randn(out, rank, generator=generator) * 0.5
    path = GRAPH.lora_folder / name
    if path.suffix == ".ckpt":
        torch.save({"state_dict": tensors}, path)
    else:
        safetensors.torch.save_file(tensors, path)


def lora_file(name="zoom.safetensors"):
    return host.submodule("motion_module.lora").load(GRAPH.lora_folder / name)


def headless(*loras):
    """Return a MODEL whose motion module file was merged without the host, kept in float32."""
    import torch

    checkpoint = host.submodule("motion_module.checkpoint")
    module = checkpoint.load(GRAPH.folder / MOTION_FILE).build(dtype=torch.float32)
    pairs = [(lora_file(name), strength) for name, strength in loras]
    host.submodule("motion_module.lora").merge(module, pairs)
    checkpoint.save(module, GRAPH.folder / "merged.safetensors", metadata={"steps": 4})
    return GRAPH.put(GRAPH.load("merged.safetensors"))


def motion_of(model):
    return model.get_additional_models()[0]


def weights_while_sampling(model):
    """Return the motion weights that a run computes with, whether merged or patched when used."""
    seen = {}

    def look(*_):
        seen.update({k: t.clone() for k, t in motion_of(model).model.state_dict().items()})
        for name, layer in motion_of(model).model.named_modules():
            for patch in getattr(layer, "weight_function", []):
                seen[f"{name}.weight"] = patch(seen[f"{name}.weight"])

    GRAPH.ours(model, callback=look)
    return seen


def patched_as_cast(model):
    """Return how many motion layers patch their weights at each use, as under lowvram."""
    layers = motion_of(model).model.modules()
    return sum(bool(getattr(layer, "weight_function", [])) for layer in layers)


def check_weights_are_w_plus_strength_up_down():
    import torch

    plain = GRAPH.load().file
    checkpoint = host.submodule("motion_module.checkpoint")
    original = checkpoint.load(plain.path).build(dtype=torch.float32).state_dict()
    found = weights_while_sampling(GRAPH.put(GRAPH.with_lora()))
    pairs = lora_file().pairs
    assert len(pairs) == 13 * 8, len(pairs)
    for key, weight in found.items():
        if key in pairs:
            up, down, _ = pairs[key]
            assert close(weight, original[key] + STRENGTH * up @ down) < 1e-6, key
        else:
            assert equal(weight, original[key]), key


def check_the_clip_equals_the_headless_merge():
    with_lora, plain = GRAPH.ours(GRAPH.put(GRAPH.with_lora())), GRAPH.ours()
    assert close(with_lora, GRAPH.ours(headless(("zoom.safetensors", STRENGTH)))) < 1e-6
    assert close(with_lora, plain) > 1e-3


def check_alpha_scales_the_lora_here_and_headless():
    """In the header as PEFT and diffusers write it, and as tensors as kohya does."""
    import safetensors.torch
    import torch

    tensors = safetensors.torch.load_file(GRAPH.lora_folder / "zoom.safetensors")
    rank = next(t.shape[0] for k, t in tensors.items() if k.endswith("down.weight"))
    alphas = {
        k.replace("down.weight", "alpha"): torch.tensor(rank / 4)
        for k in tensors
        if k.endswith("down.weight")
    }
    header = {"lora_adapter_metadata": json.dumps({"unet.r": rank, "unet.lora_alpha": rank / 4})}
    save = safetensors.torch.save_file
    save(tensors, GRAPH.lora_folder / "header.safetensors", metadata=header)
    save(tensors | alphas, GRAPH.lora_folder / "alphas.safetensors")
    quarter = GRAPH.ours(GRAPH.put(GRAPH.with_lora("zoom.safetensors", STRENGTH / 4)))
    for name in ("header.safetensors", "alphas.safetensors"):
        clip = GRAPH.ours(GRAPH.put(GRAPH.with_lora(name, STRENGTH)))
        assert close(clip, quarter) < 1e-6, (name, close(clip, quarter))
        assert close(clip, GRAPH.ours(headless((name, STRENGTH)))) < 1e-6, name
        (GRAPH.lora_folder / name).unlink()  # or a later check would list it


def check_two_in_a_chain_equal_their_sum():
    chain = GRAPH.with_lora("pan.ckpt", -0.5, GRAPH.with_lora())
    other_way = GRAPH.with_lora("zoom.safetensors", STRENGTH, GRAPH.with_lora("pan.ckpt", -0.5))
    a, b = GRAPH.ours(GRAPH.put(chain)), GRAPH.ours(GRAPH.put(other_way))
    together = headless(("zoom.safetensors", STRENGTH), ("pan.ckpt", -0.5))
    reference = GRAPH.ours(together)
    assert close(a, reference) < 1e-6, close(a, reference)
    # another order rounds differently, and the random weights amplify it
    assert close(b, reference) < 1e-5, close(b, reference)
    assert close(a, GRAPH.ours(GRAPH.put(GRAPH.with_lora()))) > 1e-3


def check_plain_and_lora_do_not_mix_in_any_order():
    module = GRAPH.load()
    plain, zoom = GRAPH.put(module), GRAPH.put(GRAPH.with_lora(module=module))
    pan = GRAPH.put(GRAPH.with_lora("pan.ckpt", 1.0, module))
    base = GRAPH.plain()
    before, with_zoom, with_pan = GRAPH.ours(plain), GRAPH.ours(zoom), GRAPH.ours(pan)
    assert not equal(before, with_zoom)
    assert not equal(with_pan, with_zoom)
    for model, clip in (
        (plain, before),
        (zoom, with_zoom),
        (zoom, with_zoom),
        (plain, before),
        (pan, with_pan),
        (plain, before),
    ):
        assert equal(GRAPH.ours(model), clip)
    assert equal(GRAPH.plain(), base)


def check_removal_is_exact_in_every_weight():
    module = GRAPH.load()
    plain = GRAPH.put(module)
    before = {k: t.clone() for k, t in motion_of(plain).model.state_dict().items()}
    GRAPH.ours(GRAPH.put(GRAPH.with_lora(module=module)))
    unload()
    after = motion_of(plain).model.state_dict()
    assert all(equal(t, before[k]) for k, t in after.items())


def check_weights_are_shared_and_merged_once():
    module = GRAPH.load()
    zoom = GRAPH.with_lora(module=module)
    plain, first, second = GRAPH.put(module), GRAPH.put(zoom), GRAPH.put(zoom)
    assert motion_of(plain).model is motion_of(first).model
    assert motion_of(first).patches_uuid == motion_of(second).patches_uuid
    assert motion_of(first).patches_uuid != motion_of(plain).patches_uuid
    assert not motion_of(plain).patches


def check_weights_are_freed_with_the_graph():
    import weakref

    model = GRAPH.put(GRAPH.with_lora())
    GRAPH.ours(model)
    module = weakref.ref(motion_of(model).model)
    GRAPH.plain()
    del model
    gc.collect()
    assert module() is None, "motion weights outlive their graph"


def check_strength_zero_changes_nothing():
    assert equal(GRAPH.ours(GRAPH.put(GRAPH.with_lora(strength=0.0))), GRAPH.ours())


def check_diffusers_keys_give_the_same_clip():
    a = GRAPH.ours(GRAPH.put(GRAPH.with_lora()))
    assert equal(GRAPH.ours(GRAPH.put(GRAPH.with_lora("zoom_diffusers.safetensors"))), a)


def check_lowvram_with_a_small_budget():
    """Most weights then stay as they are and are patched whenever the host casts them for use."""
    module = GRAPH.load()
    plain, model = GRAPH.put(module), GRAPH.put(GRAPH.with_lora(module=module))
    before, reference = GRAPH.ours(plain), GRAPH.ours(model)
    counts = []
    with small_budget():
        clip = GRAPH.ours(model, callback=lambda *_: counts.append(patched_as_cast(model)))
        again = GRAPH.ours(plain)
    assert min(counts) > 80, counts  # of 104
    assert close(clip, reference) < 1e-6, close(clip, reference)
    assert equal(again, before)
    assert equal(GRAPH.ours(model), reference)
    assert equal(GRAPH.ours(plain), before)
    assert patched_as_cast(model) == 0


def check_dtype_matrix():
    import torch

    module = GRAPH.with_lora()
    reference = GRAPH.ours(GRAPH.put(module))
    for base, compute, bar in GRAPH.bases_of_every_dtype():
        clip = GRAPH.ours(GRAPH.put(module, base))
        assert torch.isfinite(clip).all()
        assert close(clip, reference) < bar, (compute, close(clip, reference))
    assert equal(GRAPH.ours(GRAPH.put(module)), reference)


def check_cancelled_run_leaves_nothing():
    import comfy.model_management

    module = GRAPH.load()
    plain, model = GRAPH.put(module), GRAPH.put(GRAPH.with_lora(module=module))
    before = GRAPH.ours(plain)

    def cancel(*_):
        raise comfy.model_management.InterruptProcessingException

    with contextlib.suppress(comfy.model_management.InterruptProcessingException):
        GRAPH.ours(model, callback=cancel)
    assert equal(GRAPH.ours(plain), before)


def check_sliding_windows_inside_attention_use_the_lora():
    node = GRAPH.nodes["ADL_SlidingContext"]
    context = node.execute(8, 2, "uniform", "pyramid", False, 1, "features").result[0]
    apply = GRAPH.nodes["ADL_ApplyMotionModule"]
    clips = [
        GRAPH.ours(apply.execute(GRAPH.base, module, context=context).result[0])
        for module in (GRAPH.with_lora(), GRAPH.load())
    ]
    merged = headless(("zoom.safetensors", STRENGTH))
    assert not equal(*clips)
    del merged
    model = apply.execute(GRAPH.base, GRAPH.load("merged.safetensors"), context=context).result[0]
    assert close(clips[0], GRAPH.ours(model)) < 1e-6


def check_the_middle_is_left_out_with_a_warning():
    with told() as messages:
        model = GRAPH.put(GRAPH.with_lora(module=GRAPH.load(NO_MIDDLE_FILE)))
    (message,) = messages
    assert "has 8 weights for a mid block" in message, message
    assert "other 96" in message, message
    assert not equal(GRAPH.ours(model), GRAPH.ours(GRAPH.put(GRAPH.load(NO_MIDDLE_FILE))))


def check_only_weights_files_are_listed():
    schema = GRAPH.nodes["ADL_LoadMotionLoRA"].define_schema()
    (combo,) = [i for i in schema.inputs if i.id == "motion_lora"]
    assert set(combo.options) == {"zoom.safetensors", "pan.ckpt", "zoom_diffusers.safetensors"}


def check_other_files_are_named():
    import os

    import folder_paths

    for name, source in (
        ("module.safetensors", GRAPH.folder / OTHER_FILE),
        ("base.safetensors", GRAPH.models / "thin.safetensors"),
    ):
        os.symlink(source, GRAPH.lora_folder / name)
    try:
        folder_paths.filename_list_cache.clear()
        assert "is a motion module, not a motion LoRA" in refusal(
            GRAPH.with_lora, "module.safetensors"
        )
        assert "is a Stable Diffusion checkpoint" in refusal(GRAPH.with_lora, "base.safetensors")
        assert "put the file there" in refusal(GRAPH.with_lora, "gone.safetensors")
    finally:
        for name in ("module.safetensors", "base.safetensors"):
            (GRAPH.lora_folder / name).unlink()
        folder_paths.filename_list_cache.clear()


def check_a_changed_file_is_read_again():
    import os

    node = GRAPH.nodes["ADL_LoadMotionLoRA"]
    values = {"motion_module": None, "motion_lora": "pan.ckpt", "strength": 0.8}
    first = node.fingerprint_inputs(**values)
    assert node.fingerprint_inputs(**values) == first
    os.utime(GRAPH.lora_folder / "pan.ckpt", (0, 0))
    assert node.fingerprint_inputs(**values) != first


if __name__ == "__main__":
    main(GRAPH, globals())
