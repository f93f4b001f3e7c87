"""Models small enough to train here, on people who do not exist: where the toolkit is measured against the truth."""
