"""The guard: known secrets, as hashes, that a model is kept from completing while it writes."""
