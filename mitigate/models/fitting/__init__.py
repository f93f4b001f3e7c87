"""Fine-tuning: the loop, and how fast it goes and when it ends."""
