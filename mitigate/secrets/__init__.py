"""What a secret is: when two strings are the same one, where its copies are, and what can stand in its place."""
