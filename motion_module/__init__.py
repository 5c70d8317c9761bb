"""The AnimateDiff motion module: one definition, shared by the nodes and the trainer."""
