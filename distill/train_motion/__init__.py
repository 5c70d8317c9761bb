"""Plain training of a motion module or a motion LoRA on captioned clips."""
