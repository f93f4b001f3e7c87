"""Scores, pure functions of signals: of tokens, what becomes of several tokens, of spans and documents among others."""
