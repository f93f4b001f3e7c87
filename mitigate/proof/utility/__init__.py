"""What forgetting cost: losses on other text, and tasks that others measure models by."""
