"""Emulates dynamic VRAM in a ComfyUI server, which imports this file as a pack of nodes."""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import dynamic_vram

dynamic_vram.emulate()
logging.info("dynamic VRAM is emulated")
NODE_CLASS_MAPPINGS = {}
