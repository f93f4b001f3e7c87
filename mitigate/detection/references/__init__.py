"""Reference models: given or cross-fitted, and whether they are what they are taken for."""
