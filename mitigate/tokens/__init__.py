"""Tokens: what decides which ids a text becomes."""
