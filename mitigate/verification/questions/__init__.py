"""Questions of the user's own, or of a benchmark: what a model answers, and how much of the right answer is in it."""
