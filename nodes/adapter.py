"""The one file that touches ComfyUI, through its official extension points only.

Motion weights are an additional model that the host's memory management owns; forward hooks come
and go by the host's injections; run state is set by its wrappers and cleared after every run.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from weakref import WeakKeyDictionary

import comfy.model_management
import comfy.model_sampling
import comfy.ops
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import PatcherInjection, WrappersMP
from comfy_execution.utils import get_executing_context

from ..motion_module import checkpoint, files, inject, layout
from ..samplers import schedule
from . import checks

KEY = "animatediff_lightning"
MODELS_FOLDER = "animatediff_models"


def register_model_folder(name: str) -> None:
    """Add models/<name> to the host's model folders, for our known file types only."""
    folder_paths.add_model_folder_path(name, str(Path(folder_paths.models_dir) / name))
    folders, extensions = folder_paths.folder_names_and_paths[name]
    if not extensions:  # the host leaves it empty, which would list every file
        folder_paths.folder_names_and_paths[name] = (folders, set(files.EXTENSIONS))


def motion_module_files() -> list[str]:
    """Return the motion module files that the user can choose from."""
    names = folder_paths.get_filename_list(MODELS_FOLDER)
    return [name for name in names if Path(name).suffix.lower() in files.EXTENSIONS]


def motion_module_path(name: str) -> Path:
    """Return the path of a listed file; raises ValueError when it is gone."""
    path = folder_paths.get_full_path(MODELS_FOLDER, name)
    if path is None:
        raise ValueError(f"{name} is not in models/{MODELS_FOLDER}; put the file there.")
    return Path(path)


@dataclass
class LoadedMotionModule:
    """The ADL_MOTION_MODULE of the graph: a validated file, and its weights per compute dtype.

    Weights are built at the first use, in the dtype of the base model that they go into; the
    tensors of the file are let go then and read again only if a base of another dtype comes.
    """

    file: checkpoint.MotionCheckpoint
    _unbuilt: checkpoint.MotionCheckpoint | None
    _patchers: dict[torch.dtype, ModelPatcher] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Steps that the module was distilled for; 0 = unknown."""
        return self.file.steps

    def patcher(self, dtype: torch.dtype) -> ModelPatcher:
        """Return the host's handle on the weights in `dtype`."""
        if dtype not in self._patchers:
            source = self._unbuilt or checkpoint.load(self.file.path)
            module = source.build(layers=comfy.ops.manual_cast, dtype=dtype)
            self._unbuilt = None
            self._patchers[dtype] = ModelPatcher(
                module,
                load_device=comfy.model_management.get_torch_device(),
                offload_device=comfy.model_management.unet_offload_device(),
            )
        return self._patchers[dtype]


def load_motion_module(name: str) -> LoadedMotionModule:
    """Read and validate a file of the motion module folder."""
    loaded = checkpoint.load(motion_module_path(name))
    return LoadedMotionModule(file=loaded.without_tensors(), _unbuilt=loaded)


@dataclass
class AppliedMotion:
    """What one Apply leaves on a MODEL: which module, and the state of the run in progress."""

    file: checkpoint.MotionCheckpoint
    run: inject.MotionRun
    base_sigmas: torch.Tensor  # of the MODEL that came into Apply
    handles: "WeakKeyDictionary[ModelPatcher, inject.Injection]" = field(
        default_factory=WeakKeyDictionary
    )


def applied_motion(model: ModelPatcher) -> AppliedMotion | None:
    """Return what Apply Motion Module left on this MODEL, None if it never passed one."""
    return model.get_attachment(KEY)


def apply_motion_module(
    model: ModelPatcher, motion_module: LoadedMotionModule, scale: float
) -> ModelPatcher:
    """Return a clone of `model` that samples with the motion module; `model` stays as it is.

    Raises ValueError where the base model is not of the motion module's shape or its sampling is
    not an SD1.5 one, and where it carries a motion module already.
    """
    if applied_motion(model) is not None:
        raise ValueError(
            "this MODEL already carries a motion module; connect Apply Motion Module to the MODEL "
            "before the first one, or remove one of the two."
        )
    unet = model.get_model_object("diffusion_model")
    layout.check_fit(motion_module.file.config, layout.sites(unet))
    context_dim = model.model.model_config.unet_config.get("context_dim")
    if context_dim != checks.SD15_CONTEXT_DIM:
        warn(checks.other_base(context_dim))

    base_sigmas = sampling_sigmas(model)
    model = model.clone()
    model.add_object_patch("model_sampling", animatediff_sampling(model))
    applied = AppliedMotion(motion_module.file, inject.MotionRun(scale=scale), base_sigmas)
    model.set_attachments(KEY, applied)
    motion_patcher = motion_module.patcher(compute_dtype(model)).clone()
    model.set_additional_models(KEY, [motion_patcher])
    model.set_injections(KEY, [_injection(applied, motion_patcher.model)])
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _outer_sample(applied))
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, _diffusion_model(applied))
    return model


def compute_dtype(model: ModelPatcher) -> torch.dtype:
    """Return the dtype that the base model computes in, which the motion weights then share."""
    return model.model.manual_cast_dtype or model.model.get_dtype()


def animatediff_sampling(model: ModelPatcher) -> torch.nn.Module:
    """Return AnimateDiff's linear-beta schedule with the prediction type of the model's own.

    The host calls these betas "sqrt_linear". Raises ValueError for a base that is sampled as
    something other than a discrete eps- or v-predicting model.
    """
    current = model.get_model_object("model_sampling")
    prediction = next(
        (c for c in type(current).__mro__[1:] if issubclass(c, comfy.model_sampling.EPS)), None
    )
    if prediction is None or not isinstance(current, comfy.model_sampling.ModelSamplingDiscrete):
        raise ValueError(
            "this base model is not sampled like SD1.5 (discrete steps, eps or v prediction); "
            "load an SD1.5 checkpoint."
        )
    if getattr(current, "zsnr", False):
        warn(checks.ZSNR_BASE)
    settings = {
        "beta_schedule": "sqrt_linear",
        "linear_start": schedule.BETA_START,
        "linear_end": schedule.BETA_END,
        "timesteps": schedule.NUM_TRAIN_TIMESTEPS,
    }

    class ModelSampling(comfy.model_sampling.ModelSamplingDiscrete, prediction):
        pass

    return ModelSampling(SimpleNamespace(sampling_settings=settings))


def sampling_sigmas(model: ModelPatcher) -> torch.Tensor:
    """Return the sigma of every training timestep of a MODEL, shape (1000,), increasing."""
    return model.get_model_object("model_sampling").sigmas


def warn(sentence: str) -> None:
    """Tell the user: in the log, and on the running node where a server is listening."""
    logging.warning("[AnimateDiff-Lightning] %s", sentence)
    context = get_executing_context()
    if context is not None:
        from server import PromptServer  # the headless host has no server to import

        if getattr(PromptServer, "instance", None) is not None:
            PromptServer.instance.send_progress_text(sentence, context.node_id)


def _injection(applied: AppliedMotion, motion_module: torch.nn.Module) -> PatcherInjection:
    def inject_hooks(patcher: ModelPatcher) -> None:
        unet = patcher.model.diffusion_model
        # a handle left by a patcher that died in a reference cycle could not be ejected by it
        inject.eject(unet)
        applied.handles[patcher] = inject.inject(unet, motion_module, run=applied.run)

    def eject_hooks(patcher: ModelPatcher) -> None:
        # a clone copies is_injected without owning a handle, and ejects when it is collected
        handle = applied.handles.pop(patcher, None)
        if handle is not None:
            handle.eject()

    return PatcherInjection(inject=inject_hooks, eject=eject_hooks)


def _outer_sample(applied: AppliedMotion):
    def check_and_sample(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        guider = executor.class_obj
        run, config = applied.run, applied.file.config
        checks.check_latent(noise.shape, config.max_frames)
        checks.check_schedule(sampling_sigmas(guider.model_patcher), sigmas, applied.base_sigmas)
        for sentence in checks.warnings(
            noise.shape[0], getattr(guider, "cfg", 1.0), applied.file.steps
        ):
            warn(sentence)
        run.num_frames = None
        try:
            return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        finally:
            run.num_frames = None  # hooks that outlive the run then do nothing

    return check_and_sample


def _diffusion_model(applied: AppliedMotion):
    # torch.compile does not guard forward hooks; a wrapper of each Apply's own makes it recompile
    def set_num_frames(executor, x, timesteps, context, y, control, transformer_options, **kwargs):
        chunks = len(transformer_options["cond_or_uncond"])
        applied.run.num_frames = x.shape[0] // chunks
        return executor(x, timesteps, context, y, control, transformer_options, **kwargs)

    return set_num_frames
