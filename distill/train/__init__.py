"""Progressive adversarial distillation: from a config to the student of every stage."""
