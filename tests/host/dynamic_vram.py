"""ComfyUI's dynamic VRAM on a CPU: the host's own patcher class, without the paging below it.

On a CPU the host reroutes ModelPatcherDynamic to its old class. Here it stays, so that everything
which it does in Python runs: backing up weights and buffers by their path, restoring them, sharing
them between clones. comfy-aimdo's pinned buffers are stubbed and its paging of weights, which wants
a GPU, stays untested.
"""


def emulate():
    """Let every loader of this process make dynamic patchers; before anything is loaded."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy_aimdo.host_buffer

    dynamic = comfy.model_patcher.ModelPatcherDynamic
    comfy_aimdo.host_buffer.HostBuffer = NoHostBuffer
    comfy.model_management.pinned_hostbuf_size = lambda _size: 0
    dynamic.__new__ = staticmethod(lambda cls, *_args, **_kwargs: object.__new__(cls))
    dynamic.load = load_with_patches(dynamic.load)
    dynamic._vbar_get = lambda _patcher, create=False: None  # noqa: ARG005, memory of a GPU
    # the host's own asserts that the device is no CPU; without paging the backups are all there is
    dynamic.partially_unload = lambda patcher, *_args, **_kwargs: patcher.restore_loaded_backups()
    comfy.model_patcher.CoreModelPatcher = dynamic


def load_with_patches(load):
    """Let layers apply the patches of their weights, as they do where they page them in."""

    def load_and_patch(patcher, *args, **kwargs):
        load(patcher, *args, **kwargs)
        for module in patcher.model.modules():
            for name in ("weight", "bias"):
                patch = getattr(module, f"{name}_lowvram_function", None)
                if patch is not None:
                    functions = [patch, *getattr(module, f"{name}_function")]
                    setattr(module, f"{name}_function", functions)

    return load_and_patch


class NoHostBuffer:
    """Stands in for pinned memory, of which a CPU has none."""

    size = 0

    def __init__(self, *_args):
        pass

    def truncate(self, *_args, **_kwargs):
        pass
