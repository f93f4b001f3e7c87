"""`mitigate bench speed`: what an audit and an unlearning step cost, as ratios measured in one run.

mitigate bench speed --shape gpt2 --out runs/speed
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from mitigate.artifacts.files import write_json
from mitigate.bench.settings import Part, SpeedSettings
from mitigate.bench.speed.audits import measure_audits
from mitigate.bench.speed.memory import measure_memory
from mitigate.bench.speed.processes import measure_processes
from mitigate.bench.speed.steps import measure_steps
from mitigate.runtime import library_versions, process_state

PARTS: tuple[str, ...] = get_args(Part)


def bench_speed(
    out: Path,
    *,
    steps: int = 5,
    parts: Sequence[str] = PARTS,
    settings: SpeedSettings | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure and write `out/speed.json`.

    Args:
        out: directory of the models and the result.
        steps (`int`, *optional*, defaults to 5): measured unlearning steps, after one that is not.
        parts (*optional*, default to all): `audit`, `step`, `processes`, `memory`.
        settings (*optional*): sizes.
        device (`str`, *optional*, defaults to `auto`): of the models.

    Returns:
        what `speed.json` holds: `audit`, see `measure_audits`, the keys of `measure_steps`, `processes`, see
        `measure_processes`, and `memory`, see `measure_memory`.
    """
    settings = settings or SpeedSettings()
    results: dict[str, Any] = {}
    if "audit" in parts:
        results["audit"] = measure_audits(settings, device=device)
    if "step" in parts:
        results |= measure_steps(out, steps=steps, settings=settings, device=device)
    several = process_state(device).device.type != "cuda" or torch.cuda.device_count() > 1
    if "processes" in parts and several:  # NCCL has no two processes on one GPU
        results["processes"] = measure_processes(settings, device=device)
    if "memory" in parts:
        results["memory"] = measure_memory(settings.documents)
    results["settings"] = {
        "steps": steps,
        "device": str(process_state(device).device),
        **settings.model_dump(mode="json"),
    }
    results["versions"] = library_versions()
    write_json(out / "speed.json", results)
    return results


def speed_table(results: dict[str, Any]) -> str:
    """The results as lines of text."""
    lines = []
    if "audit" in results:
        lines.append(
            f"{'audit':<26}{'tokens/s':>10}{'of bare forwards':>20}{'one by one / audit':>20}{'re-audit / audit':>20}"
        )
        for name, found in results["audit"]["cases"].items():
            ratios = found["ratios"]
            columns = [ratios.get(key) for key in ("audit_of_bare", "one_by_one_of_audit", "again_of_audit")]
            shown = "".join(f"{'-' if value is None else format(value, '.2f'):>20}" for value in columns)
            lines.append(f"{name:<26}{found['tokens_per_second']:>10,.0f}{shown}")
            if "compiled_of_bare" in ratios:
                lines.append(f"{'  compiled':<36}{ratios['compiled_of_bare']:>20.2f}")
        switch = results["audit"]["switching"]
        lines.append(f"switching among {switch['adapters']} adapters of one base: {switch['milliseconds']:.2f} ms each")
    if "variants" in results:
        lines += ["", f"{'unlearning step':<22}{'step':>10}{'peak':>10}{'against dense':>24}"]
        for name, found in results["variants"].items():
            ratio = results["ratios"][name]
            lines.append(
                f"{name:<22}{found['seconds_per_step']:>9.3f}s{found['peak_bytes'] / 2**20:>7.0f}MiB"
                f"{ratio['seconds_per_step']:>14.2f} time {ratio['peak_bytes']:.2f} memory"
            )
        difference = results["loss_difference"]
        lines.append(f"relative difference of the loss, sparse against dense: {difference:.1e}")
    if "processes" in results:
        lines += [
            "",
            f"an audit by two processes of one thread: {results['processes']['speedup']:.2f} times as fast as by one",
        ]
    if "memory" in results:
        lines.append("")
        memory = results["memory"]
        peaks = [memory[way]["peak_bytes"] for way in ("whole", "parts")]
        for count, tokens, *both in zip(memory["documents"], memory["tokens"], *peaks, strict=True):
            whole, parts = (f"{peak / 2**20:,.0f} MiB" for peak in both)
            lines.append(f"an audit of {count:,} documents, {tokens:,} tokens: {whole} at most, by parts {parts}")
    return "\n".join(lines).strip()
