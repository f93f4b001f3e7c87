"""The loop that unlearns: steps, losses, the watch over what is left, checkpoints."""
