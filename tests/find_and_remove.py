"""Audit, unlearn and cross-fit, in however many processes this was started in; for test_processes.

torchrun --nproc_per_node 2 find_and_remove.py BASE TARGET REFERENCES DOCUMENTS OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from world import LORA

from mitigate.detection.audit import audit
from mitigate.detection.references.crossfit import crossfit_references
from mitigate.detection.settings import Detect
from mitigate.documents import read_documents
from mitigate.models.settings import Schedule
from mitigate.models.store import ModelStore
from mitigate.runtime import is_main, process_state, quiet_libraries
from mitigate.unlearning.settings import Retain, Unlearn
from mitigate.unlearning.trainer import unlearn

SETTINGS = Unlearn(
    max_steps=5, check_every=2, checkpoint_every=2, batch_size=3, retain_batch_size=4, lora=LORA, stop_at_control=False
)
SUBSTITUTED = SETTINGS.model_copy(
    update={"objective": "dpo=1,hinge=1", "retain": Retain(budget=1e-4), "method": "full"}
)


def find_and_remove(base: Path, target: Path, references: Path, documents: Path, out: Path) -> None:
    """Write `audit`, `adapter`, `substituted` and `references` to `out`."""
    store = ModelStore(device="cpu")
    detect = Detect(select="known", batch_tokens=100, kept_entries=8)
    result = audit(target, [references], documents=documents, detect=detect, store=store)
    if is_main():
        result.save(out / "audit")
    unlearn(result, out=out / "adapter", settings=SETTINGS, store=store)
    unlearn(result, out=out / "substituted", settings=SUBSTITUTED, store=store)
    crossfit_references(
        base,
        read_documents(documents),
        out=out / "references",
        count=2,
        lora=LORA,
        schedule=Schedule(epochs=1),
        new_store=lambda: ModelStore(device="cpu"),
    )


if __name__ == "__main__":
    quiet_libraries()
    find_and_remove(*map(Path, sys.argv[1:]))
    process_state().destroy_process_group()
