"""Headless use without ComfyUI: the command line program, generation, and the trainer."""
