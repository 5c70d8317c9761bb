"""Reads, recognises, validates and writes motion module files in both released layouts.

Formats: the original/"comfyui" keys (v2, v3, Lightning, AnimateLCM) and diffusers' MotionAdapter
keys, in .safetensors or as a pickle of tensors (.ckpt, .pth, .pt, .bin).
"""

import os
import pickle
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from . import keys, recognise
from .config import MotionModuleConfig
from .module import MotionModule
from .temporal import sinusoidal_positions

EXTENSIONS = (".safetensors", ".sft", ".ckpt", ".pth", ".pt", ".bin")
POSITIONS_WHERE_FILE_HAS_NONE = 64  # AnimateLCM's own code
_DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}
_RELEASED_STEPS = re.compile(r"lightning[_-](\d+)[_-]?step", re.IGNORECASE)
_ADDRESS = re.compile(r"^((?:down_blocks|up_blocks)\.(\d+)|mid_block)\.motion_modules\.(\d+)\.")


class CheckpointError(ValueError):
    """A file that cannot be used as a motion module; the message is one sentence for the user."""


@dataclass(frozen=True)
class MotionCheckpoint:
    """A validated motion module file.

    state_dict: keyed like MotionModule; steps: 0 where neither metadata nor name tell;
    layout: as in the file; dtype: of most tensors; metadata: the file's own.
    """

    path: Path
    config: MotionModuleConfig
    state_dict: dict[str, Tensor] = field(repr=False)
    family: str
    steps: int
    layout: keys.Layout
    dtype: torch.dtype
    metadata: dict[str, str]

    def build(
        self, layers: ModuleType = nn, dtype: torch.dtype | None = None
    ) -> MotionModule:
        """Return the module with these weights, in `dtype` or the file's own."""
        with torch.device("meta"):
            module = MotionModule(self.config, layers)
        # on the meta device nothing is allocated twice: the file's tensors become the weights
        dtype = dtype or self.dtype
        weights = {k: t.to(dtype, copy=True) for k, t in self.state_dict.items()}
        module.load_state_dict(weights, assign=True)
        return module.eval().requires_grad_(False)

    def describe(self) -> dict[str, str]:
        """Return what was found as label -> text, for a table."""
        channels = sorted(set(self.config.addresses().values()))
        return {
            "file": str(self.path),
            "family": self.family,
            "steps": str(self.steps) if self.steps else "unknown",
            "layout": self.layout,
            "dtype": _DTYPES[self.dtype],
            "motion modules": str(len(self.config.addresses())),
            "channels": ", ".join(map(str, channels)),
            "mid block": "yes" if self.config.mid_block else "no",
            "positions": f"{self.config.max_frames} frames",
            "heads": str(self.config.num_heads),
            "norm": f"{self.config.norm_groups} groups over each {self.config.norm_scope}",
            "parameters": f"{sum(t.numel() for k, t in self.state_dict.items() if not k.endswith('.pe')):,}",
            "metadata": ", ".join(f"{k}={v}" for k, v in self.metadata.items()) or "none",
        }


def load(path: str | os.PathLike) -> MotionCheckpoint:
    """Read and validate a motion module file.

    Raises CheckpointError, with one sentence, for a file that is missing, damaged, of another kind,
    of an unsupported family (v1, SDXL, HotShot-XL), incomplete, wrongly shaped, or not finite.
    """
    path = Path(path)
    try:
        tensors, metadata = _read(path)
        tensors = _unwrap(tensors)
        layout = keys.layout_of(tensors)
        if layout is None:
            name = recognise.name_other(tensors) or "a file of some other kind"
            raise CheckpointError(f"is no motion module but {name}")
        refusal = recognise.refuse_known(tensors)
        if refusal:
            raise CheckpointError(refusal)
        if layout == "diffusers":
            tensors = keys.from_diffusers(tensors)
        config = replace(_infer_config(tensors), **_config_from_metadata(metadata))
        has_positions = any(k.endswith(".pos_encoder.pe") for k in tensors)
        if not has_positions:
            tensors |= _computed_positions(config)
        _validate(tensors, config)
        dtype = Counter(t.dtype for t in tensors.values()).most_common(1)[0][0]
        steps = _steps(path, metadata)
    except (CheckpointError, ValueError) as error:
        raise CheckpointError(f"{path.name} {_sentence(str(error))}") from error
    return MotionCheckpoint(
        path=path, config=config, state_dict=tensors, layout=layout, dtype=dtype, steps=steps,
        family=metadata.get("family") or recognise.family(config, has_positions, steps),
        metadata=metadata,
    )  # fmt: skip


def save(
    module: MotionModule,
    path: str | os.PathLike,
    layout: keys.Layout = "comfyui",
    metadata: Mapping[str, object] | None = None,
) -> Path:
    """Write a motion module as .safetensors in a released layout and its own dtype, atomically.

    `metadata` is stored as text (steps, family, anything); heads, norm groups and norm scope are
    added where they are not AnimateDiff's defaults, since no tensor tells them. A v2 module in F16
    without metadata has 588 tensors and 908,929,664 bytes, as the released ones.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".sft"):
        raise ValueError(f"{path.name}: motion modules are written as .safetensors only.")
    if layout not in ("comfyui", "diffusers"):
        raise ValueError(f'layout must be "comfyui" or "diffusers", not {layout!r}.')
    tensors = {k: t.detach().contiguous().cpu() for k, t in module.state_dict().items()}
    if layout == "diffusers":
        tensors = keys.to_diffusers(tensors)
    texts = {k: str(v) for k, v in (metadata or {}).items()}
    default = MotionModuleConfig()
    for name in ("num_heads", "norm_groups", "norm_scope"):
        value = getattr(module.config, name)
        if value != getattr(default, name) or metadata:
            texts[name] = str(value)
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata=texts or None)
    return path


class atomic_path:  # noqa: N801 - reads as a verb in `with atomic_path(path) as temporary`
    """Context manager giving a temporary name beside `path`, renamed to it only on success."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{self.path.stem}-", suffix=self.path.suffix, dir=self.path.parent
        )
        os.close(handle)
        self.temporary = Path(name)
        return self.temporary

    def __exit__(self, kind: type | None, error: object, trace: object) -> None:
        if kind is None:
            umask = os.umask(0)
            os.umask(umask)
            self.temporary.chmod(0o666 & ~umask)  # mkstemp makes files for the owner alone
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)


def _read(path: Path) -> tuple[dict[str, object], dict[str, str]]:
    if path.suffix.lower() not in EXTENSIONS:
        raise CheckpointError(f"has no known extension; expected one of {', '.join(EXTENSIONS)}")
    if path.is_dir():
        raise CheckpointError("is a folder; give the weights file inside it")
    if not path.is_file():
        raise CheckpointError(f"was not found in {path.parent}")
    if path.suffix.lower() in (".safetensors", ".sft"):
        return _read_safetensors(path)
    return _read_pickle(path), {}


def _read_safetensors(path: Path) -> tuple[dict[str, object], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"is truncated or no safetensors file ({error}); download it again"
        ) from error


def _read_pickle(path: Path) -> dict[str, object]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "holds more than tensors, or is damaged, and is not opened for safety; "
            "get the .safetensors version"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError("is truncated or no PyTorch file; download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"holds a {type(content).__name__} where a state dict belongs")
    return content


def _unwrap(content: dict) -> dict[str, Tensor]:
    """Drop what trainers wrap around the weights: nesting, a config, a "module." prefix."""
    if isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    tensors = {k.removeprefix("module."): t for k, t in content.items() if isinstance(t, Tensor)}
    if not tensors:
        raise CheckpointError("holds no tensors; download it again")
    return tensors


def _infer_config(tensors: Mapping[str, Tensor]) -> MotionModuleConfig:
    channels: dict[str, dict[int, int]] = {}
    for key, tensor in tensors.items():
        match = _ADDRESS.match(key)
        if match and key.endswith(".temporal_transformer.norm.weight"):
            channels.setdefault(match.group(1), {})[int(match.group(3))] = tensor.shape[0]
        elif match:
            channels.setdefault(match.group(1), {}).setdefault(int(match.group(3)), 0)
    sides: dict[str, list] = {"down_blocks": [], "up_blocks": []}
    for side, blocks in sides.items():
        count = 1 + max((int(b.split(".")[1]) for b in channels if b.startswith(side)), default=-1)
        blocks += [_part_channels(f"{side}.{i}", channels) for i in range(count)]
    middle = _part_channels("mid_block", channels) if "mid_block" in channels else ()
    tables = (t.shape[1] for k, t in tensors.items() if k.endswith("pos_encoder.pe") and t.ndim == 3)
    return MotionModuleConfig(
        down_blocks=tuple(sides["down_blocks"]),
        mid_block=middle,
        up_blocks=tuple(sides["up_blocks"]),
        max_frames=next(tables, POSITIONS_WHERE_FILE_HAS_NONE),
        num_heads=1,  # heads and groups are no matter of tensors: metadata or defaults follow
        norm_groups=1,
    )


def _part_channels(block: str, channels: dict[str, dict[int, int]]) -> tuple[int, ...]:
    parts = channels.get(block, {})
    for j in range(1 + max(parts, default=0)):
        if not parts.get(j):
            key = f"{block}.motion_modules.{j}.temporal_transformer.norm.weight"
            raise CheckpointError(f"lacks {key}; the file is incomplete, download it again")
    return tuple(parts[j] for j in sorted(parts))


def _config_from_metadata(metadata: Mapping[str, str]) -> dict[str, object]:
    default = MotionModuleConfig()
    out: dict[str, object] = {"norm_scope": metadata.get("norm_scope", default.norm_scope)}
    for name in ("num_heads", "norm_groups"):
        text = metadata.get(name, str(getattr(default, name)))
        if not text.isdecimal():
            raise CheckpointError(f"has {name}={text!r} in its metadata, which is no whole number")
        out[name] = int(text)
    return out


def _computed_positions(config: MotionModuleConfig) -> dict[str, Tensor]:
    return {
        f"{address}.temporal_transformer.transformer_blocks.0.attention_blocks.{i}.pos_encoder.pe":
            sinusoidal_positions(config.max_frames, channels)
        for address, channels in config.addresses().items()
        for i in (0, 1)
    }  # fmt: skip


def _validate(tensors: Mapping[str, Tensor], config: MotionModuleConfig) -> None:
    with torch.device("meta"):
        expected = {k: tuple(t.shape) for k, t in MotionModule(config).state_dict().items()}
    wrong_shape = [
        f"{k} of shape {tuple(t.shape)} instead of {expected[k]}"
        for k, t in tensors.items()
        if k in expected and tuple(t.shape) != expected[k]
    ]
    wrong_dtype = [f"{k} as {t.dtype}" for k, t in tensors.items() if t.dtype not in _DTYPES]
    for what, found in (
        ("lacks", [k for k in expected if k not in tensors]),
        ("has unknown", [k for k in tensors if k not in expected]),
        ("has", wrong_shape),
        ("has", wrong_dtype),
    ):
        if found:
            raise CheckpointError(
                f"{what} {_first(found)}; the file is damaged or not one of the released layouts"
            )
    # a sum in float32 is finite unless an element is not, and takes one pass without a copy
    broken = [
        k for k, t in tensors.items()
        if not torch.isfinite(t.sum(dtype=torch.float32)) and not torch.isfinite(t).all()
    ]  # fmt: skip
    if broken:
        raise CheckpointError(f"has NaN or infinite values in {_first(broken)}; download it again")


def _first(names: list[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def _steps(path: Path, metadata: Mapping[str, str]) -> int:
    if "steps" in metadata:
        if not metadata["steps"].isdecimal():
            raise CheckpointError(
                f"has steps={metadata['steps']!r} in its metadata, which is no whole number"
            )
        return int(metadata["steps"])
    released = _RELEASED_STEPS.search(path.name)
    return int(released.group(1)) if released else 0


def _sentence(text: str) -> str:
    return text if text.endswith(".") else text + "."
