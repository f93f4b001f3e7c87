"""Exact unlearning: the model fitted anew without what is to be forgotten."""
