"""Parts of a node's schema that only newer hosts know: older ones refuse unknown arguments."""

import dataclasses
import inspect

from comfy_api.latest import io


def search_aliases(*names: str) -> dict[str, list[str]]:
    """Return the argument of a schema that lets a node be found by other names."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return {"search_aliases": list(names)} if "search_aliases" in known else {}


def advanced(kind: type) -> dict[str, bool]:
    """Return the argument of an input of this kind that folds it away."""
    known = inspect.signature(kind).parameters
    return {"advanced": True} if "advanced" in known else {}
