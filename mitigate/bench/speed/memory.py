"""Peak memory of an audit of more and more documents, each in a process of its own.

Two models of a few thousand random parameters read invented people's documents, so that what is measured is what the
audit itself holds: text, tokens, signals, tables.
"""

from __future__ import annotations

import logging
import multiprocessing
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mitigate.detection.audit import audit
from mitigate.documents import Documents
from mitigate.lab.settings import TinyModel
from mitigate.lab.tiny import new_llama, train_tokenizer
from mitigate.lab.writing import general_text
from mitigate.models.store import ModelStore
from mitigate.runtime import peak_resident_bytes, progress, quiet_libraries

SHAPE = TinyModel(vocabulary=600, hidden_size=16, layers=1, heads=2, context=256)


def measure_memory(counts: Sequence[int]) -> dict[str, Any]:
    """Audit so many documents.

    Returns:
        `documents`, `tokens`, `peak_bytes` (resident, of the whole process) and `before_bytes` (before the audit, the
        documents read), each in the order of `counts`; `ratio` of the last peak to the first.
    """
    found: dict[str, list[int]] = {"documents": list(counts), "tokens": [], "peak_bytes": [], "before_bytes": []}
    with tempfile.TemporaryDirectory() as directory, progress(len(counts), "Memory", unit="audit") as bar:
        tokenizer = train_tokenizer([one.text for one in general_text(300, seed="memory")], vocabulary=SHAPE.vocabulary)
        for number in range(2):
            new_llama(len(tokenizer), SHAPE, seed=number).save_pretrained(f"{directory}/{number}")
            tokenizer.save_pretrained(f"{directory}/{number}")
        for count in counts:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                for name, value in pool.apply(_audited, (directory, count)).items():
                    found[name].append(value)
            bar.update()
    return {**found, "ratio": found["peak_bytes"][-1] / found["peak_bytes"][0]}


def _audited(directory: str, count: int) -> dict[str, int]:
    """The peak of an audit in this process."""
    quiet_libraries()
    logging.disable(logging.WARNING)  # that random models know nothing is no news here
    documents = Documents(tuple(general_text(count, seed=count)))
    before = peak_resident_bytes()
    made = audit(f"{directory}/0", f"{directory}/1", documents=documents, store=ModelStore(device="cpu"))
    made.save(Path(directory) / "audit", replace=True)
    return {"tokens": len(made.tokens), "peak_bytes": peak_resident_bytes(), "before_bytes": before}
