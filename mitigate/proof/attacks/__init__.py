"""The attacks: each gives a score of every text, of the mitigated model and of its control alike."""
