"""Models: what lies in a directory, whether it is what it says, loaded, and bases shared by adapters."""
