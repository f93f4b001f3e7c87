"""What a model writes by itself: decoding, samples under audit, and where they stand in the training text."""
