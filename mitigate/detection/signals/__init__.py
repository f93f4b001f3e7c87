"""Signals of tokens: what models say of them, one row a token."""
