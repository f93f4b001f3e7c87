"""Prove it: figures with intervals, extraction, comparison of an audit with its re-audit."""
