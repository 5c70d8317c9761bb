"""Injection of a motion module into an image UNet by forward hooks: no key, no weight changes.

One implementation for both hosts: the hook runs a motion module on the output of the submodule that
it follows (see layout.py), in ComfyUI's LDM UNet and in diffusers' UNet alike.
"""

import weakref
from dataclasses import dataclass

import torch
from torch import nn

from . import layout
from .module import MotionModule
from .temporal import FrameWindows


@dataclass
class MotionRun:
    """What a run may change between UNet calls; the motion module itself holds no run state.

    num_frames: frames a clip in the batch; None or 1 leaves the UNet a plain image model.
    scale: multiplies the keys of the temporal attention; 1 is an exact no-op.
    windows: windows inside the temporal attention, for clips longer than the positions.
    """

    num_frames: int | None = None
    scale: float = 1.0
    windows: FrameWindows | None = None


class Injection:
    """A motion module in a UNet. `eject()` leaves the UNet as it was, bit for bit."""

    def __init__(self, unet: nn.Module, motion_module: MotionModule, run: MotionRun) -> None:
        self.motion_module = motion_module
        self.run = run
        self._unet = weakref.ref(unet)
        unet_sites = layout.sites(unet)
        layout.check_fit(motion_module.config, unet_sites)
        transformers = motion_module.temporal_transformers().items()
        self._sites = {address: _Site(transformer) for address, transformer in transformers}
        self._hooks = [
            unet_sites[address].module.register_forward_hook(_make_hook(site, run))
            for address, site in self._sites.items()
        ]

    @property
    def active(self) -> bool:
        """Whether the hooks are in place."""
        return bool(self._hooks)

    def replace(self, motion_module: MotionModule) -> None:
        """Run another motion module of the same shape in this one's place; no hook moves.

        Raises ValueError where it has transformers at other addresses.
        """
        transformers = motion_module.temporal_transformers()
        if transformers.keys() != self._sites.keys():
            raise ValueError("a motion module of another shape cannot take this one's place.")
        for address, transformer in transformers.items():
            self._sites[address].transformer = transformer
        self.motion_module = motion_module

    def eject(self) -> None:
        """Remove this injection's own hooks; a second call does nothing."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        unet = self._unet()
        if unet is not None and _injections.get(unet) is self:
            del _injections[unet]  # or the registry would keep the motion weights alive


_injections: "weakref.WeakKeyDictionary[nn.Module, Injection]" = weakref.WeakKeyDictionary()


def inject(
    unet: nn.Module,
    motion_module: MotionModule,
    *,
    num_frames: int | None = None,
    scale: float = 1.0,
    run: MotionRun | None = None,
) -> Injection:
    """Hook a motion module into a UNet and return the handle that removes it.

    `unet` is an LDM-layout UNet or a diffusers UNet2DConditionModel whose batch is
    (clips * num_frames). Pass `run` to share the run state with the caller; it is also the
    handle's `.run`, through which frames and scale may change between calls. Injecting the same
    module again returns the handle in place, its run as it was. Raises ValueError for a UNet of
    another shape and for one that holds another motion module or is run by another caller.
    """
    current = injected(unet)
    if current is not None:
        same_run = run is None or run is current.run  # equal is not enough: the caller changes it
        if current.motion_module is motion_module and same_run:
            return current
        raise ValueError("this UNet already holds a motion module; eject that one first.")
    injection = Injection(unet, motion_module, run or MotionRun(num_frames, scale))
    _injections[unet] = injection
    return injection


def injected(unet: nn.Module) -> Injection | None:
    """Return the live injection of a UNet, or None."""
    return _injections.get(unet)


def eject(unet: nn.Module) -> None:
    """Remove whatever motion module a UNet holds; does nothing when it holds none."""
    injection = injected(unet)
    if injection is not None:
        injection.eject()


@dataclass
class _Site:
    """Where a hook finds the temporal transformer that it runs."""

    transformer: nn.Module


def _make_hook(site: _Site, run: MotionRun):
    def run_motion_module(_module: nn.Module, _inputs: tuple, output):
        if run.num_frames is None or run.num_frames == 1:
            return output
        if isinstance(output, torch.Tensor):
            return site.transformer(output, run.num_frames, run.scale, run.windows)
        return (site.transformer(output[0], run.num_frames, run.scale, run.windows), *output[1:])

    return run_motion_module
