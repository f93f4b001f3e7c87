"""Adapters merged into their base, and the plain model written."""

from __future__ import annotations

from pathlib import Path

from mitigate.artifacts.files import new_directory
from mitigate.models.store import ModelStore

MERGED = "merged"  # directory of the merged model beside the adapter


def merge_adapters(directory: Path, *, out: Path, store: ModelStore) -> None:
    """Merge a model's adapters into its base and write the plain model with its tokenizer.

    The base is loaded anew on the CPU: the store's own stays as it is.

    Args:
        directory: PEFT adapter directory.
        out: a new directory.
        store: settles number format, permissions and base.

    Raises:
        MitigateError: the merged model says something else than the adapters over their base, or they cannot be merged.
    """
    model = store.fresh(device="cpu", quantized=False).load(directory)
    model.base.merge(model.adapters, instead="use the adapter unmerged")
    with new_directory(out) as made:
        model.base.model.save_pretrained(made)
        model.tokenizer.save_pretrained(made)
