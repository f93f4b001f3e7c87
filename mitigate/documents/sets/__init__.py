"""Which set a document belongs to: dealt at random, and equal texts that must not be in two."""
