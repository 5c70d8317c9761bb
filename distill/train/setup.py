"""What a process holds through all stages of a distillation: checked, loaded and claimed."""

import functools
from dataclasses import dataclass

import torch

from ..engine import distributed
from ..files.digest import digest
from ..miniature.names import base_path, motion_module_path
from ..models import student_files
from ..models.base_model import BaseModel, load_base
from . import batches, checks
from .config import TrainConfig
from .run_folder import RunFolder
from .validation import Validator, captions_of


@dataclass(frozen=True)
class Setup:
    """A process's share of the clips, its base models by slot, and the pools.

    share: (slot, samples of the slot), one a forward; discriminator_base: the base model that D
    starts from and whose text encoder it hears; validator: where the config asks for one.
    """

    config: TrainConfig
    device: torch.device
    folder: RunFolder
    share: list[tuple[int, range]]
    pools: batches.Pools
    bases: dict[int, BaseModel]
    discriminator_base: BaseModel
    validator: Validator | None


def load_setup(config: TrainConfig, device: torch.device, resume: bool) -> Setup:
    """Check a config, load this process's base models, frozen, and claim the run's folder.

    Raises ConfigError for all that cannot work, and ValueError where the folder holds another run
    (or, not `resume`, any) or where processes see different files.
    """
    pools = checks.check(config, distributed.world_size())
    folder = RunFolder(config.out)
    if not resume and (folder.is_claimed or student_files.files(folder.root)):
        raise ValueError(f"{config.out} holds a run; choose another --out, or --resume auto.")
    share = batches.share_out(config, distributed.rank(), distributed.world_size())
    load_once = functools.cache(functools.partial(_load_base, config, device))
    slots = sorted({slot for slot, _ in share})
    bases = {slot: load_once(config.slots[slot].base) for slot in slots}
    discriminator_base = load_once(config.discriminator_base)
    distributed.barrier()  # nothing is written before every process has all that it needs
    clips = {name: pool.digest() for name, pool in pools.items()}
    _check_alike(config, clips)
    validator = Validator(config, device, load_once) if config.validation is not None else None
    distributed.barrier()
    if distributed.rank() == 0:
        folder.claim(config, clips)
    distributed.barrier()
    _check_shared(folder)
    return Setup(config, device, folder, share, pools, bases, discriminator_base, validator)


def _load_base(config: TrainConfig, device: torch.device, name: str) -> BaseModel:
    slot = config.slot_of(name)
    return load_base(
        base_path(name),
        device=device,
        dtype=getattr(torch, config.frozen_dtype),
        config=slot.config if slot else None,
        tokenizer=slot.tokenizer if slot else None,
        prediction_type=slot.prediction_type if slot else None,
    )


def _check_alike(config: TrainConfig, clips: dict[str, str]) -> None:
    """Raise ValueError where processes differ in config, pools (by digest) or motion modules."""
    if distributed.world_size() == 1:  # a large file takes seconds to digest
        return
    modules = [digest(motion_module_path(name)) for name in config.motion_modules]
    captions = captions_of(config.validation) if config.validation is not None else []
    told = (config.fingerprint(), config.validation, captions, clips, modules)
    if not distributed.agree(told):
        raise ValueError(
            "the processes have different configs, clips or motion modules; copy the same ones to "
            "all machines."
        )


def _check_shared(folder: RunFolder) -> None:
    files = (folder.is_claimed, folder.newest(), student_files.files(folder.root))
    if not distributed.agree(files):
        raise ValueError(
            f"the processes see different files in {folder.root}; use an --out that all machines "
            "share."
        )
