"""AnimateDiff's noise schedule as the host's model sampling, and the sigmas of a MODEL."""

from collections.abc import Iterator
from types import SimpleNamespace

import comfy.model_sampling
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher

from ...samplers import schedule


def make_model_sampling(model: ModelPatcher) -> torch.nn.Module:
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


def make_core_sigmas(model_sampling: torch.nn.Module, steps: int) -> Iterator[torch.Tensor]:
    """Yield what the host's schedulers make that are neither even in time nor between two ends."""
    for name in ("beta", "kl_optimal", "linear_quadratic"):
        yield comfy.samplers.calculate_sigmas(model_sampling, name, steps)


def get_training_sigmas(model: ModelPatcher) -> torch.Tensor:
    """Return the sigma of every training timestep of a MODEL, shape (timesteps,), increasing."""
    return model.get_model_object("model_sampling").sigmas
