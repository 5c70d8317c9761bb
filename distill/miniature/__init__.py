"""The miniature: a procedural video world, and real models that are small enough to train on it."""
