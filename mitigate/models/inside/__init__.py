"""Parts of a model between its embeddings and its logits."""
