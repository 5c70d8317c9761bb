"""Reads what lies beside a weights file and tells what its tensors do not.

diffusers writes config.json beside a MotionAdapter, PEFT adapter_config.json beside a LoRA; both
may lie beside a file in the comfyui layout, too. The name of a folder may be a released one's.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from .infer import MAX_FRAMES, Shaped

# what libraries call every file, so that only the folder has a name of its own
_GENERIC_NAMES = ("diffusion_pytorch_model", "pytorch_model", "model", "adapter_model")
_LARGEST = 2**20  # bytes of a config
_FIELDS = {  # of MotionAdapter's config, and what they are in our metadata
    "motion_num_attention_heads": "num_heads",
    "motion_norm_num_groups": "norm_groups",
    "motion_max_seq_length": MAX_FRAMES,
}


def has_generic_name(path: Path) -> bool:
    """Tell whether a library named the file, as diffusion_pytorch_model.fp16.safetensors."""
    return path.name.partition(".")[0] in _GENERIC_NAMES


def complete(
    path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Shaped]
) -> dict[str, str]:
    """Return a motion module's metadata, and what a MotionAdapter's config beside it adds.

    What the file itself says wins. A config of another shape than the tensors (comfyui layout)
    belongs to another file.
    """
    for file in (path.with_suffix(".json"), path.parent / "config.json"):
        config = _read_json(file)
        if config.get("_class_name") == "MotionAdapter" and _is_about(config, tensors):
            told = {
                ours: _as_text(config[name]) for name, ours in _FIELDS.items() if name in config
            }
            return told | dict(metadata)
    return dict(metadata)


def read_adapter_config(path: Path) -> dict[str, object]:
    """Return PEFT's config beside a LoRA file, empty where there is none."""
    files = [path.with_suffix(".json")]
    if has_generic_name(path):
        files.append(path.parent / "adapter_config.json")
    configs = (_read_json(file) for file in files)
    return next((config for config in configs if "peft_type" in config), {})


def _read_json(file: Path) -> dict[str, object]:
    """Return the object in a JSON file, empty where there is none: other tools leave notes, too."""
    try:
        if not file.is_file() or file.stat().st_size > _LARGEST:
            return {}
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_about(config: Mapping[str, object], tensors: Mapping[str, Shaped]) -> bool:
    channels = {
        str(t.numel()) for k, t in tensors.items() if k.endswith("_transformer.norm.weight")
    }
    has_middle = any(k.startswith("mid_block.") for k in tensors)
    widths = config.get("block_out_channels")
    return (
        isinstance(widths, list)
        and {str(width) for width in widths} == channels
        and config.get("use_motion_mid_block", True) == has_middle
    )


def _as_text(value: object) -> str:
    """Return a setting as metadata has it; one for each block is one where all are equal."""
    if isinstance(value, list) and len(set(map(str, value))) == 1:
        value = value[0]
    return str(value)
