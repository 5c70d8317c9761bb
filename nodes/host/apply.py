"""The one file that touches ComfyUI, through its official extension points only.

Motion weights are an additional model that the host's memory management owns; forward hooks come
and go by the host's injections; run state is set by its wrappers and cleared after every run.
"""

import logging
import os
import uuid
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.ops
import comfy.sample
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, PatcherInjection, WrappersMP
from comfy_execution.utils import get_executing_context

from ...motion_module import checkpoint, files, inject, layout
from ...motion_module import lora as motion_lora
from ...samplers import context, schedule
from .. import checks
from . import preview
from .windows import LatentWindows, WindowSettings, current_step

KEY = "animatediff_lightning"
WARNING = f"{KEY}.warning"  # the event that web/warnings.js listens to
MODELS_FOLDER = "animatediff_models"
LORAS_FOLDER = "animatediff_motion_lora"


def register_model_folder(name: str) -> None:
    """Add models/<name> to the host's model folders, for our known file types only."""
    folder_paths.add_model_folder_path(name, str(Path(folder_paths.models_dir) / name))
    folders, extensions = folder_paths.folder_names_and_paths[name]
    if not extensions:  # the host leaves it empty, which would list every file
        folder_paths.folder_names_and_paths[name] = (folders, set(files.EXTENSIONS))


def model_files(folder: str) -> list[str]:
    """Return the weights files of a model folder that the user can choose from."""
    names = folder_paths.get_filename_list(folder)
    return [name for name in names if Path(name).suffix.lower() in files.EXTENSIONS]


def model_path(folder: str, name: str) -> Path:
    """Return the path of a listed file; raises ValueError when it is gone."""
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        raise ValueError(f"{name} is not in models/{folder}; put the file there.")
    return Path(path)


def file_state(folder: str, name: str | None) -> tuple[str, float] | None:
    """Return a listed file's name and time of change; None: the name comes from a link.

    The host asks for it before links are known, and sees their changes itself.
    """
    return None if name is None else (name, model_path(folder, name).stat().st_mtime)


def input_videos() -> list[str]:
    """Return the videos of the host's input folder that the user can choose from.

    Newer hosts refuse a link that leads out of the folder; what they refuse is not offered.
    """
    entries = Path(folder_paths.get_input_directory()).iterdir()
    names = [entry.name for entry in entries if entry.is_file()]
    names = [name for name in names if folder_paths.exists_annotated_filepath(name)]
    return sorted(folder_paths.filter_files_content_types(names, ["video"]))


def input_file(name: str) -> Path:
    """Return the path of a file in the host's input folder; raises ValueError for any other.

    Whether a link that somebody put into that folder may lead out of it is the host's choice.
    """
    folder = os.path.abspath(folder_paths.get_input_directory())
    outside = f"{name} is outside ComfyUI's input folder; upload it with the node's button."
    try:
        path = Path(os.path.abspath(folder_paths.get_annotated_filepath(name)))
    except ValueError as error:  # newer hosts look at the path themselves
        raise ValueError(outside) from error
    if not path.is_relative_to(folder):
        raise ValueError(outside)
    if not path.is_file():
        raise ValueError(
            f"{name} is not in ComfyUI's input folder; upload it with the node's button."
        )
    return path


def free_memory() -> int:
    """Return the bytes of main memory that the host may still use."""
    return comfy.model_management.get_free_memory(torch.device("cpu"))


def stop_if_cancelled() -> None:
    """Raise the host's own exception where the user has pressed cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def core_noise(samples: torch.Tensor, seed: int, frames: list[int] | None = None) -> torch.Tensor:
    """Return the noise that Random Noise makes for latents; `frames` picks from a longer clip."""
    return comfy.sample.prepare_noise(samples, seed, frames)


class Placement(NamedTuple):
    """How weights are used: a key of the weights of a file.

    is_dynamic: whether the host pages the base model by need, and so the motion weights, too.
    """

    dtype: torch.dtype
    load_device: torch.device
    offload_device: torch.device
    is_dynamic: bool

    @classmethod
    def beside(cls, model: ModelPatcher) -> "Placement":
        """Return where the motion weights belong that run within a MODEL."""
        return cls(compute_dtype(model), model.load_device, model.offload_device, is_dynamic(model))


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
        patcher = _build(source, placement)
        # how the host makes the weights of another device; clones hand it on
        patcher.cached_patcher_init = (_load_anew, (self.file.path, placement))
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


def is_dynamic(model: ModelPatcher) -> bool:
    """Tell whether the host pages the weights of a model by need; older hosts never do."""
    return hasattr(model, "is_dynamic") and model.is_dynamic()


def _build(source: checkpoint.MotionCheckpoint, placement: Placement) -> ModelPatcher:
    module = source.build(layers=comfy.ops.manual_cast, dtype=placement.dtype)
    make = comfy.model_patcher.CoreModelPatcher if placement.is_dynamic else ModelPatcher
    return make(module, placement.load_device, placement.offload_device)


def _load_anew(path: Path, placement: Placement, disable_dynamic: bool = False) -> ModelPatcher:
    """Return fresh weights of a file, as the host's own loaders do for each device."""
    if disable_dynamic:
        placement = placement._replace(is_dynamic=False)
    return _build(checkpoint.load(path), placement)


def load_motion_module(name: str) -> LoadedMotionModule:
    """Read and validate a file of the motion module folder."""
    loaded = checkpoint.load(model_path(MODELS_FOLDER, name))
    return LoadedMotionModule(file=loaded.without_tensors(), _unbuilt=loaded)


def add_motion_lora(
    motion_module: LoadedMotionModule, name: str, strength: float
) -> LoadedMotionModule:
    """Return a motion module with a file of the motion LoRA folder; the given one stays as it is.

    Raises ValueError for a file that is no motion LoRA or does not fit the module.
    """
    lora = motion_lora.load(model_path(LORAS_FOLDER, name))
    config = motion_module.file.config
    pairs = motion_lora.weight_patches(lora, config)
    beyond = lora.beyond(config)
    tell(checks.lora_beyond(name, len(beyond), len(pairs)) if beyond else None)
    if strength == 0:
        return motion_module
    return WithMotionLora(
        motion_module.file, None, below=motion_module, patches=_host_lora(pairs), strength=strength
    )


def _host_lora(pairs: dict[str, motion_lora.Pair]) -> dict[str, object]:
    """Return (up, down) pairs as the host's own LoRA patches, low-rank in memory."""
    tensors = {f"{k}.lora_up.weight": up for k, (up, _) in pairs.items()}
    tensors |= {f"{k}.lora_down.weight": down for k, (_, down) in pairs.items()}
    return comfy.lora.load_lora(tensors, {k: k for k in pairs})


@dataclass
class AppliedMotion:
    """What one Apply leaves on a MODEL: which module, and the state of the run in progress.

    All clones of the MODEL share it, those on other devices too; `runs` has a state for each of
    their base models, since two devices may run at the same time.
    """

    file: checkpoint.MotionCheckpoint
    scale: float
    base_sigmas: torch.Tensor  # of the MODEL that came into Apply
    sliding: WindowSettings | None = None
    window_length: int | None = None  # frames of a clip in a call; None: all that the call holds
    # Goes with each call of the UNet as the name of an argument. torch.compile guards neither hooks
    # nor, as the host sets it up, options, so a graph without motion would serve for one with it.
    mark: str = field(default_factory=lambda: f"{KEY}_{uuid.uuid4().hex}")
    runs: "weakref.WeakKeyDictionary[torch.nn.Module, inject.MotionRun]" = field(
        default_factory=weakref.WeakKeyDictionary
    )
    ejectors: "weakref.WeakKeyDictionary[ModelPatcher, weakref.finalize]" = field(
        default_factory=weakref.WeakKeyDictionary
    )

    def run_of(self, base_model: torch.nn.Module) -> inject.MotionRun:
        """Return the state that the hooks in the UNet of a base model read."""
        if base_model not in self.runs:
            self.runs[base_model] = inject.MotionRun(scale=self.scale)
        return self.runs[base_model]

    def num_frames(self, x: torch.Tensor, transformer_options: dict) -> int:
        """Return the frames of a clip (or window) in the batch of a model call."""
        return self.window_length or x.shape[0] // len(transformer_options["cond_or_uncond"])

    def end_run(self) -> None:
        """Let go of what the last call has set; hooks that outlive the run then do nothing."""
        for run in self.runs.values():
            run.num_frames = run.windows = None


def applied_motion(model: ModelPatcher) -> AppliedMotion | None:
    """Return what Apply Motion Module left on this MODEL, None if it never passed one."""
    return model.get_attachment(KEY)


def apply_motion_module(
    model: ModelPatcher,
    motion_module: LoadedMotionModule,
    scale: float,
    sliding: WindowSettings | None = None,
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
    zsnr = getattr(model.get_model_object("model_sampling"), "zsnr", False)
    tell(*checks.base_warnings(context_dim, zsnr))

    base_sigmas = sampling_sigmas(model)
    model = model.clone()
    model.add_object_patch("model_sampling", animatediff_sampling(model))
    applied = AppliedMotion(motion_module.file, scale, base_sigmas, sliding)
    model.set_attachments(KEY, applied)
    model.set_additional_models(KEY, [motion_module.weights(Placement.beside(model)).clone()])
    model.add_callback_with_key(CallbacksMP.ON_CLONE, KEY, _follow_clone)
    model.set_injections(KEY, [_injection(applied)])
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _outer_sample(applied))
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _apply_model(applied))
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, _diffusion_model(applied))
    if sliding is not None:
        _add_windows(model, applied, sliding)
    return model


def _follow_clone(_model: ModelPatcher, clone: ModelPatcher) -> None:
    """Give a clone whose base model is no longer paged motion weights that are not, either.

    The host makes such clones for torch.compile and for conditionings with hooks.
    """
    [motion] = clone.get_additional_models_with_key(KEY)
    if is_dynamic(motion) and not is_dynamic(clone):
        clone.set_additional_models(KEY, [motion.clone(disable_dynamic=True)])


def _add_windows(model: ModelPatcher, applied: AppliedMotion, sliding: WindowSettings) -> None:
    checks.check_window(sliding.options.context_length, applied.file.config.max_frames)
    model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, _prepare_sampling(sliding))
    if sliding.where == "latents":
        model.model_options["context_handler"] = LatentWindows(
            sliding,
            on_length=lambda length: setattr(applied, "window_length", length),
            fits=_fits_in_memory,
            check_cancelled=stop_if_cancelled,
        )


def _fits_in_memory(shape: list[int], model) -> bool:
    # newer hosts also count what their patcher can page out
    own = getattr(model.current_patcher, "get_free_memory", None)
    free = (own or comfy.model_management.get_free_memory)(model.device)
    return model.memory_required(shape) * 1.5 < free  # the host's own margin


def _prepare_sampling(sliding: WindowSettings):
    def estimate_one_call(executor, model, noise_shape, *args, **kwargs):
        shape = [sliding.call_length(noise_shape[0]), *noise_shape[1:]]
        return executor(model, shape, *args, **kwargs)

    return estimate_one_call


def compute_dtype(model: ModelPatcher) -> torch.dtype:
    """Return the dtype that the base model computes in, which the motion weights then share."""
    return model.get_model_object("manual_cast_dtype") or model.model.get_dtype()


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
    settings = {
        "beta_schedule": "sqrt_linear",
        "linear_start": schedule.BETA_START,
        "linear_end": schedule.BETA_END,
        "timesteps": schedule.NUM_TRAIN_TIMESTEPS,
    }

    class ModelSampling(comfy.model_sampling.ModelSamplingDiscrete, prediction):
        """Keeps its tables as plain attributes.

        A host with dynamic VRAM saves the buffers of a model by their path and writes them back
        whatever object stands there then, so that the plain model's tables would land here and
        these there (ComfyUI's issue 16490).
        """

        def set_sigmas(self, sigmas: torch.Tensor) -> None:
            self.sigmas, self.log_sigmas = sigmas.float(), sigmas.log().float()

        def register_buffer(self, name: str, *args, **kwargs) -> None:
            if name not in ("sigmas", "log_sigmas"):
                super().register_buffer(name, *args, **kwargs)

    return ModelSampling(SimpleNamespace(sampling_settings=settings))


def sampling_sigmas(model: ModelPatcher) -> torch.Tensor:
    """Return the sigma of every training timestep of a MODEL, shape (timesteps,), increasing."""
    return model.get_model_object("model_sampling").sigmas


def strongest_cfg(guider: object) -> float:
    """Return the largest guidance scale of a guider, 1 where it tells none.

    DualCFGGuider has two, and an idle `cfg`; the guiders of some packs have one for each step.
    """
    scales = []
    for name in ("cfg", "cfg1", "cfg2"):
        told = getattr(guider, name, 1.0)
        scales += told if isinstance(told, list | tuple) else [told]
    return max((float(s) for s in scales if isinstance(s, int | float)), default=1.0)


_told: dict[str, tuple[str, list[str]]] = {}  # by node: the prompt that ran, what it was told


def tell(*found: str | None) -> None:
    """Tell the user what checks found: in the log, and on the running node where a server listens.

    What the node was told in an earlier prompt goes, also when there is nothing to tell now.
    """
    sentences = [_capitalised(sentence) for sentence in found if sentence]
    for sentence in sentences:
        logging.warning("[AnimateDiff-Lightning] %s", sentence)
    running = get_executing_context()
    if running is None:
        return
    from server import PromptServer  # the headless host has no server to import

    if getattr(PromptServer, "instance", None) is None:
        return
    prompt, before = _told.pop(running.node_id, ("", []))
    kept = before if prompt == running.prompt_id else []  # a node may run several times in one
    shown = list(dict.fromkeys(kept + sentences))
    if shown:
        _told[running.node_id] = running.prompt_id, shown
    if shown or before:  # one text replaces the other; the frontend ignores an empty one
        server, text = PromptServer.instance, " ".join(shown)
        server.send_progress_text(text or " ", running.node_id)
        # newer frontends drop that text when the run is over; web/warnings.js shows this one
        server.send_sync(WARNING, {"node": running.node_id, "text": text}, server.client_id)


def _capitalised(sentence: str) -> str:
    """Return a sentence with a capital letter, unless it begins with the name of a file."""
    is_word = sentence.partition(" ")[0].isalpha()
    return sentence[0].upper() + sentence[1:] if is_word else sentence


def _injection(applied: AppliedMotion) -> PatcherInjection:
    def inject_hooks(patcher: ModelPatcher) -> None:
        unet = patcher.model.diffusion_model
        inject.eject(unet)  # one patcher of a UNet is in use at a time, whatever became of others
        # of this patcher: a clone on another device has weights of its own there
        [motion_patcher] = patcher.get_additional_models_with_key(KEY)
        run = applied.run_of(patcher.model)
        injection = inject.inject(unet, motion_patcher.model, run=run)
        # a patcher that dies in a reference cycle has lost its weak key before it can eject
        applied.ejectors[patcher] = weakref.finalize(patcher, injection.eject)

    def eject_hooks(patcher: ModelPatcher) -> None:
        # a clone copies is_injected without owning an ejector, and ejects when it is collected
        eject = applied.ejectors.pop(patcher, None)
        if eject is not None:
            eject()

    return PatcherInjection(inject=inject_hooks, eject=eject_hooks)


def _outer_sample(applied: AppliedMotion):
    def check_and_sample(
        executor,
        noise,
        latent_image,
        sampler,
        sigmas,
        denoise_mask=None,
        callback=None,
        *args,
        **kwargs,
    ):
        guider = executor.class_obj
        longest = None if applied.sliding is not None else applied.file.config.max_frames
        checks.check_latent(noise.shape, longest)
        checks.check_schedule(sampling_sigmas(guider.model_patcher), sigmas, applied.base_sigmas)
        frames = noise.shape[0]
        tell(
            *checks.warnings(frames, strongest_cfg(guider), sigmas, applied.file.steps),
            *checks.text_warnings(_prompt_lengths(guider), frames),
        )
        try:
            callback = preview.with_contact_sheet(callback)
            return executor(
                noise, latent_image, sampler, sigmas, denoise_mask, callback, *args, **kwargs
            )
        finally:
            applied.end_run()

    return check_and_sample


def _prompt_lengths(guider) -> set[int]:
    """Return for how many frames each of the run's prompts has embeddings."""
    conds = [cond for part in getattr(guider, "conds", {}).values() for cond in part]
    return {cond["cross_attn"].shape[0] for cond in conds if cond.get("cross_attn") is not None}


def _apply_model(applied: AppliedMotion):
    # around what torch.compile traces: reading the step off the noise level would break its graph
    def set_run(executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
        run = applied.run_of(executor.class_obj)
        run.num_frames = applied.num_frames(x, transformer_options)
        if applied.sliding is not None and applied.sliding.where == "features":
            windows = _feature_windows(applied.sliding, run.num_frames, x, transformer_options)
            run.windows = windows
        kwargs[applied.mark] = True
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    return set_run


def _diffusion_model(applied: AppliedMotion):
    def take_off_mark(executor, *args, **kwargs):
        del kwargs[applied.mark]
        return executor(*args, **kwargs)

    return take_off_mark


def _feature_windows(
    sliding: WindowSettings, num_frames: int, x: torch.Tensor, transformer_options: dict
) -> context.ContextWindows | None:
    """Return the windows inside the temporal attention, None where all frames see each other."""
    if num_frames <= sliding.options.context_length:
        return None
    step = current_step(transformer_options["sigmas"], transformer_options["sample_sigmas"])
    return context.plan(num_frames, sliding.options, step).to(x)
