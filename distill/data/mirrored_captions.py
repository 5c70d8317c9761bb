"""What a mirrored clip's caption says: left and right change places (section 3.3, random flips)."""

import re

_OTHER = {
    "left": "right",
    "right": "left",
    "clockwise": "counterclockwise",
    "counterclockwise": "clockwise",
    "anticlockwise": "clockwise",
}
# "right" and "left" in these tell no side
_NO_SIDE = (
    r"(?<!\ball )\bright(?! (?:now|away|here|there|angles?|after|before|next to|in front)\b)"
    r"(?!-angled)|\bleft(?! (?:behind|alone|over)\b)"
)
_SIDE = re.compile(
    rf"(?:{_NO_SIDE})(?=(?:wards?|most|hand|handed|hander|side|sided)?\b)"
    r"|\b(?:counter|anti)?clockwise\b",
    re.IGNORECASE,
)


def flipped(caption: str) -> str:
    """Return the caption of the horizontally mirrored clip; the case of its words is kept."""
    return _SIDE.sub(lambda match: _like(match[0], _OTHER[match[0].lower()]), caption)


def _like(word: str, other: str) -> str:
    """Return the other word in the first one's case."""
    if word.isupper():
        return other.upper()
    return other.capitalize() if word[0].isupper() else other
