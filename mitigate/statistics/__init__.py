"""Intervals, rates and ROC figures: pure functions of arrays, under everything that needs them."""
