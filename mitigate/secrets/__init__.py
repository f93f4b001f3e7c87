"""What a secret is: what is sensitive by itself in a text, and when two strings are the same secret."""
