"""From a checked request, a prompt and a seed, to latents."""
