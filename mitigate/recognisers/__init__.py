"""Recognisers: what in a text is sensitive by itself, by kind; our own, or Presidio's where it is installed."""
