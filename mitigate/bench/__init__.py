"""Benchmarks on models trained here, where the truth is known: which document trained which model."""
