"""The ADL_MOTION_MODULE of the graph: a file and its weights, which the host's memory owns."""

import uuid
from dataclasses import dataclass, field
from pathlib import Path

import comfy.lora
import comfy.model_patcher
import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher

from ...motion_module import checkpoint
from ...motion_module import lora as motion_lora
from .. import checks
from .execution import show_on_node
from .folders import LORAS_FOLDER, MODELS_FOLDER, find_model_file
from .placement import Placement, is_dynamic


@dataclass
class LoadedMotionModule:
    """The ADL_MOTION_MODULE of the graph: a validated file, and its weights where they are used.

    Weights are built at the first use, in the dtype and for the device of the base model that they
    go into; the tensors of the file are let go then and read again only for another of the two.
    """

    file: checkpoint.MotionCheckpoint
    _unbuilt: checkpoint.MotionCheckpoint | None
    _patchers: dict[Placement, ModelPatcher] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Steps that the module was distilled for; 0 = unknown."""
        return self.file.steps

    @property
    def patcher(self) -> ModelPatcher | None:
        """The host's handle on the weights that were used last, by which its caches know them."""
        return next(reversed(self._patchers.values()), None)

    def is_dynamic(self) -> bool:
        """Tell the caches whether the host pages the weights by need."""
        return self.patcher is not None and is_dynamic(self.patcher)

    def get_ram_usage(self) -> int:
        """Return the bytes of all weights, by which the caches of some hosts judge."""
        return sum(patcher.model_size() for patcher in self.get_models())

    def get_models(self) -> list[ModelPatcher]:
        """Return the handles on all weights, which the host asks for before each prompt."""
        return list(self._patchers.values())

    def weights(self, placement: Placement) -> ModelPatcher:
        """Return the host's handle on the weights in a dtype and for a device."""
        # the newest last
        patcher = self._patchers.pop(placement, None) or self._make_patcher(placement)
        self._patchers[placement] = patcher
        return patcher

    def _make_patcher(self, placement: Placement) -> ModelPatcher:
        source = self._unbuilt or checkpoint.load(self.file.path)
        self._unbuilt = None
        patcher = _build_patcher(source, placement)
        # how the host makes the weights of another device; clones hand it on
        patcher.cached_patcher_init = (_reload_weights, (self.file.path, placement))
        return patcher


@dataclass(kw_only=True)
class WithMotionLora(LoadedMotionModule):
    """An ADL_MOTION_MODULE with a motion LoRA over another one, whose weights it shares.

    The LoRA is a patch on a clone of the other's patcher: the host merges it when it loads the
    clone, casts it along under lowvram, and puts the kept weights back for any other clone.
    """

    below: LoadedMotionModule
    patches: dict[str, object] = field(repr=False)
    strength: float

    def _make_patcher(self, placement: Placement) -> ModelPatcher:
        patcher = self.below.weights(placement).clone()
        patcher.add_patches(self.patches, self.strength)
        # the host finds copies on other devices by it: those without these patches must not match
        patcher.clone_base_uuid = uuid.uuid4()
        return patcher


def load_motion_module(name: str) -> LoadedMotionModule:
    """Read and validate a file of the motion module folder."""
    loaded = checkpoint.load(find_model_file(MODELS_FOLDER, name))
    return LoadedMotionModule(file=loaded.without_tensors(), _unbuilt=loaded)


def add_motion_lora(
    motion_module: LoadedMotionModule, name: str, strength: float
) -> LoadedMotionModule:
    """Return a motion module with a file of the motion LoRA folder; the given one stays as it is.

    Raises ValueError for a file that is no motion LoRA or does not fit the module.
    """
    lora = motion_lora.load(find_model_file(LORAS_FOLDER, name))
    config = motion_module.file.config
    pairs = motion_lora.weight_patches(lora, config)
    beyond = lora.beyond(config)
    show_on_node(
        checks.lora_beyond(name, len(beyond), len(pairs)) if beyond else None,
        checks.lora_for_image_model(name, lora.for_image_model) if lora.for_image_model else None,
    )
    if strength == 0:
        return motion_module
    patches = _make_host_patches(pairs)
    return WithMotionLora(
        motion_module.file, None, below=motion_module, patches=patches, strength=strength
    )


def _build_patcher(source: checkpoint.MotionCheckpoint, placement: Placement) -> ModelPatcher:
    module = source.build(layers=comfy.ops.manual_cast, dtype=placement.dtype)
    # the class came with dynamic VRAM; hosts without it place nothing dynamically
    core_patcher = getattr(comfy.model_patcher, "CoreModelPatcher", ModelPatcher)
    make = core_patcher if placement.is_dynamic else ModelPatcher
    return make(module, placement.load_device, placement.offload_device)


def _reload_weights(
    path: Path, placement: Placement, disable_dynamic: bool = False
) -> ModelPatcher:
    """Return fresh weights of a file, as the host's own loaders do for each device."""
    if disable_dynamic:
        placement = placement._replace(is_dynamic=False)
    return _build_patcher(checkpoint.load(path), placement)


def _make_host_patches(pairs: dict[str, motion_lora.LowRank]) -> dict[str, object]:
    """Return the changes of a motion LoRA as the host's own patches, low-rank in memory."""
    tensors = {f"{k}.lora_up.weight": pair.up for k, pair in pairs.items()}
    tensors |= {f"{k}.lora_down.weight": pair.down for k, pair in pairs.items()}
    # the host divides it by the rank again
    tensors |= {
        f"{k}.alpha": torch.tensor(pair.scale * len(pair.down), dtype=torch.float64)
        for k, pair in pairs.items()
        if pair.scale != 1
    }
    return comfy.lora.load_lora(tensors, {k: k for k in pairs})
