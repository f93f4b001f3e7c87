"""How far a re-audit by what was kept of the references lies from one that runs them again, and what keeping costs.

    python tests/kept_entries.py --run runs/hard --documents 40 --out kept-hard.json

Of a finished run with a whole or cross-fitted audit and an adapter: on the first documents, the audited model beside
its OUT references keeps 16, 64, 256 and 1,024 entries of each token's distribution (`detect.kept_entries`). Then the
mitigated model is compared with what was kept, and with the references themselves. Counted are how far `kl` lies apart,
in nats, the seconds of the processor, and the bytes on disk.

Prints what it counts, and writes it. A command, not a test: minutes on one core.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mitigate.artifacts.files import write_json
from mitigate.detection.audit import load_audited
from mitigate.detection.kept import KeptReferences
from mitigate.detection.record import Audit
from mitigate.detection.signals.compute import compute_signals
from mitigate.detection.signals.kept import KEPT_COLUMNS, KeepMean, KeptMean
from mitigate.detection.signals.pairings import Pairing, sliced
from mitigate.models.store import ModelStore
from mitigate.runtime import library_versions, quiet_libraries

ENTRIES = (16, 64, 256, 1024)


def measured(run: Path, *, documents: int) -> dict[str, Any]:
    """For each number of entries the distances, seconds and bytes; beside them what the references themselves take."""
    store, audit = ModelStore(device="cpu"), Audit.load(run / "audit")
    texts, out = audit.tokenized()[:documents], audit.documents["out_references"].to_pylist()[:documents]
    references = load_audited(audit.metadata.references, store=store)
    [target] = load_audited([audit.metadata.target], store=store)
    after = store.load(run / "adapter")
    pairings = [Pairing(number, 0, tuple(k + 1 for k in own)) for number, own in enumerate(out)]
    starts = np.cumsum([0, *(len(text.ids) for text in texts)])
    exact, beside = timed(lambda: compute_signals([after, *references], pairings, documents=texts))
    _, plain = timed(lambda: compute_signals([target, *references], pairings, documents=texts))
    found = []
    for entries in ENTRIES:
        keep = KeepMean(entries)
        signals, keeping = timed(
            lambda k=keep: compute_signals([target, *references], pairings, documents=texts, beside=k)
        )
        kept = {name: signals[name] for name in KEPT_COLUMNS}
        rows = [sliced(kept, slice(*starts[n : n + 2])) for n in range(len(texts))]
        alone = [Pairing(number, 0) for number in range(len(texts))]
        again, seconds = timed(
            lambda r=rows, a=alone: compute_signals(
                [after], a, documents=texts, beside=KeptMean(r, vocabulary=target.vocabulary_size)
            )
        )
        off = np.abs(again["kl"] - exact["kl"])
        off = off[~np.isnan(off)]
        with tempfile.TemporaryDirectory() as directory:
            KeptReferences.of(kept, None).save(Path(directory))
            size = sum(file.stat().st_size for file in Path(directory).iterdir())
        found.append(
            {
                "entries": entries,
                "kl_off": {
                    "mean": float(off.mean()),
                    "99_percent": float(np.quantile(off, 0.99)),
                    "most": float(off.max()),
                },
                "bytes_a_token": size / len(off),
                "audit_of_plain": keeping / plain,
                "reaudit_of_beside": seconds / beside,
            }
        )
        print(found[-1], flush=True)
    return {
        "documents": len(texts),
        "tokens": int(starts[-1]),
        "vocabulary": target.vocabulary_size,
        "references_a_token": float(np.mean([len(own) for own in out])),
        "mean_kl": float(np.nanmean(exact["kl"])),
        "kept": found,
        "versions": library_versions(),
    }


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and the processor's seconds."""
    started = time.process_time()
    result = work()
    return result, time.process_time() - started


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="directory of a run that unlearned by an adapter")
    parser.add_argument("--documents", type=int, default=40, help="of the audit, the first ones")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    quiet_libraries()
    write_json(arguments.out, measured(arguments.run, documents=arguments.documents))
