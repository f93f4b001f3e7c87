"""Objectives: formulas per token, distributions kept by their likeliest entries, and the catalogue by name."""
