"""Reading videos, without a host and without anything else of ours.

The nodes (clip.py, with sound) and training (reader.py) get the same frames from the same decoder.
"""
