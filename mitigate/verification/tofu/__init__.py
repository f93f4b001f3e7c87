"""The figures of the TOFU benchmark: its questions, a model's answers, and what they amount to."""
