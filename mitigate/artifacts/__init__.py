"""Files that last: written whole or not at all, known by their digests, by one job at a time."""
