"""Whether a number that a user gave lies in its range."""

from collections.abc import Mapping


def check_range(name: str, value: float | None, low: float, high: float | None = None) -> None:
    """Raise ValueError for a value outside of low to high, NaN too; None is no value.

    name: what the user gave the value by; high: None for no upper limit.
    """
    if value is None or (low <= value and (high is None or value <= high)):
        return
    limits = f"at least {low}" if high is None else f"between {low} and {high}"
    raise ValueError(f"{name} must be {limits}, not {value}.")


def check_ranges(
    values: object, ranges: Mapping[str, tuple[float, float]], prefix: str = ""
) -> None:
    """Check attributes of an object, each by its option's name: "save_every" is "save-every"."""
    for name, (low, high) in ranges.items():
        check_range(prefix + name.replace("_", "-"), getattr(values, name), low, high)
