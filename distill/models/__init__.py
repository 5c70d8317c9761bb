"""Base models, their text and their VAE, as diffusers has them, and what lies beside a student."""
