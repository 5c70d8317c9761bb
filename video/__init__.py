"""Reading videos, without a host and without anything else of ours.

The nodes read frames and sound through PyAV (clip.py), training reads frames through opencv
(reader.py).
"""
