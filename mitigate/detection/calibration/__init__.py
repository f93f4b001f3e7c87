"""From features to probabilities with a known error rate: shadows, features, attack models."""
