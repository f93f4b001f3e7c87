"""What a secret is: what is sensitive by itself in a text."""
