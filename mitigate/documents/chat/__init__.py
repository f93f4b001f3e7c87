"""Conversations: rendered by a tokenizer's chat template, and where each turn stands in the text."""
