"""Named tasks of the field, before and after, by the package lm-eval (github.com/EleutherAI/lm-evaluation-harness)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mitigate.errors import MitigateError, summarize
from mitigate.models.model import Model
from mitigate.proof.settings import Proof

_BATCH = 8


def check_tasks(settings: Proof) -> None:
    """Before anything is spent.

    Raises:
        MitigateError: tasks are asked for that lm-eval does not know, or it is not installed.
    """
    if not settings.tasks:
        return
    if find_spec("lm_eval") is None:
        raise MitigateError("tasks: lm-eval is not installed: pip install 'mitigate[tasks]', or leave tasks out")
    if settings.task_files is not None and not Path(settings.task_files).is_dir():
        raise MitigateError(f"task_files: {settings.task_files}: no such directory")
    known = set(_manager(settings).all_tasks)
    if unknown := [name for name in settings.tasks if name not in known]:
        raise MitigateError(
            f"tasks: lm-eval knows no {summarize(unknown)}; `lm-eval ls tasks` lists its own, task_files adds yours"
        )


def task_figures(before: Model, mitigated: Model, settings: Proof, *, seed: int) -> list[dict[str, Any]]:
    """Each task's metrics for both models: `task`, `metric`, `before`, `mitigated`, `samples`.

    Raises:
        MitigateError: lm-eval fails, for instance because a task's data cannot be had here.
    """
    if not settings.tasks:
        return []
    own, other = (_evaluated(model, settings, seed) for model in (before, mitigated))
    return [
        {
            "task": task,
            "metric": name.removesuffix(",none"),
            "before": float(value),
            "mitigated": float(other["results"][task][name]),
            "samples": int(own["n-samples"].get(task, {}).get("effective", 0)) or None,
        }
        for task, found in own["results"].items()
        for name, value in found.items()
        if "," in name and "_stderr" not in name and isinstance(value, int | float)
    ]


def _evaluated(model: Model, settings: Proof, seed: int) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    with model.active() as module:
        try:
            return simple_evaluate(
                model=HFLM(pretrained=module, tokenizer=model.tokenizer, batch_size=_BATCH, max_length=model.context),
                tasks=list(settings.tasks),
                task_manager=_manager(settings),
                limit=settings.task_limit,
                bootstrap_iters=0,
                log_samples=False,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        except Exception as error:  # whatever a task's data or code does
            raise MitigateError(f"tasks: lm-eval failed ({type(error).__name__}: {error})") from error


def _manager(settings: Proof) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=settings.task_files)
