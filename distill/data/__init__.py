"""Clips: made by a teacher or read from videos, kept as shards of latents, and verified."""
