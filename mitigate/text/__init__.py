"""Text and ranges of it: folding, regular expressions with a time limit, token ids with the characters they cover."""
