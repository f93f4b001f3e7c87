"""Adapters that are given out: put on, added, merged, and the card that says how to load them."""
