"""Peak memory of an audit of more and more documents, whole and by parts, each in a process of its own.

Two models of a few thousand random parameters read invented people's documents, so that what is measured is what the
audit itself holds: text, tokens, signals, tables.
"""

from __future__ import annotations

import logging
import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mitigate.detection.audit import audit
from mitigate.detection.parts.audit import audit_parts
from mitigate.documents import Document, read_documents
from mitigate.documents.written import write_jsonl
from mitigate.lab.settings import TinyModel
from mitigate.lab.tiny import new_llama, train_tokenizer
from mitigate.lab.writing import general_text
from mitigate.models.store import ModelStore
from mitigate.runtime import peak_resident_bytes, progress, quiet_libraries

PART_TOKENS = 50_000
SHAPE = TinyModel(vocabulary=600, hidden_size=16, layers=1, heads=2, context=256)


def measure_memory(counts: Sequence[int]) -> dict[str, Any]:
    """Audit so many documents, which are read from a file.

    Returns:
        `documents`, `tokens`, and of an audit of all at once (`whole`) and of one by parts (`parts`) of `part_tokens`
        tokens the `peak_bytes` (resident, of the whole process) and `before_bytes` (before the audit), each in the
        order of `counts`, and the `ratio` of the last peak to the first.
    """
    found: dict[str, dict[str, Any]] = {"whole": {}, "parts": {}}
    tokens: list[int] = []
    with tempfile.TemporaryDirectory() as directory, progress(2 * len(counts), "Memory", unit="audit") as bar:
        tokenizer = train_tokenizer([one.text for one in general_text(300, seed="memory")], vocabulary=SHAPE.vocabulary)
        for number in range(2):
            new_llama(len(tokenizer), SHAPE, seed=number).save_pretrained(f"{directory}/{number}")
            tokenizer.save_pretrained(f"{directory}/{number}")
        for count in counts:
            write_jsonl(_documents(count), Path(directory, f"{count}.jsonl"))
        for way, values in found.items():
            measured = []
            for count in counts:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    measured.append(pool.apply(_audited, (directory, count, way)))
                bar.update()
            tokens = [one.pop("tokens") for one in measured]
            values |= {name: [one[name] for one in measured] for name in measured[0]}
            values["ratio"] = values["peak_bytes"][-1] / values["peak_bytes"][0]
    return {"documents": list(counts), "tokens": tokens, "part_tokens": PART_TOKENS, **found}


def _documents(count: int) -> Iterator[Document]:
    for first in range(0, count, 1000):
        texts = general_text(min(1000, count - first), seed=f"{count} {first}")
        yield from (replace(text, id=f"{first}-{number}", group="") for number, text in enumerate(texts))


def _audited(directory: str, count: int, way: str) -> dict[str, int]:
    """The peak of an audit in this process."""
    quiet_libraries()
    logging.disable(logging.WARNING)  # that random models know nothing is no news here
    before, path = peak_resident_bytes(), f"{directory}/{count}.jsonl"
    models, store = (f"{directory}/0", f"{directory}/1"), ModelStore(device="cpu")
    if way == "parts":
        out = f"{directory}/{count}-parts"
        tokens = audit_parts(*models, documents=path, store=store, out=out, part_tokens=PART_TOKENS).total.tokens
    else:
        made = audit(*models, documents=read_documents(path), store=store)
        made.save(f"{directory}/{count}-whole")
        tokens = len(made.tokens)
    return {"tokens": tokens, "peak_bytes": peak_resident_bytes(), "before_bytes": before}
