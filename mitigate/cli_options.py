"""What the command line's verbs share: options with one name, help and default everywhere, and their handling."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mitigate.errors import MitigateError

if TYPE_CHECKING:
    from mitigate.models import ModelStore

Out = Annotated[Path, typer.Option("--out", help="Directory for the result; must be new or empty.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="auto (float32 on a CPU, else the checkpoint's), float32, bfloat16, float16.")]
Remote = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that comes with a checkpoint.")]
Pickle = Annotated[bool, typer.Option("--allow-pickle", help="Accept weights that are not safetensors.")]
BaseModelPath = Annotated[
    str | None,
    typer.Option("--base", help="Base to use for adapters instead of the one they name.", show_default=False),
]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting as key=value, as in a recipe; may be given again.", show_default=False),
]


def quiet() -> None:
    """Silence the libraries' own output, and other processes than the first."""
    from mitigate.runtime import is_main, quiet_libraries

    quiet_libraries()
    if not is_main():
        logging.getLogger("mitigate").setLevel(logging.WARNING)


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints."""
    from mitigate.runtime import is_main

    return is_main()


def check_free_out(out: Path) -> None:
    """Refuse an occupied directory before the work, not after it."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MitigateError(f"{out}: already holds something; choose another --out or remove it")


def model_store(base: str | None, device: str, dtype: str, trust_remote_code: bool, allow_pickle: bool) -> ModelStore:
    """A store with the options' device, number format and permissions."""
    from mitigate.models import ModelStore

    return ModelStore(
        device=device, dtype=dtype, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle, base=base
    )


def settings_from(kind: Any, assignments: list[str] | None) -> Any:
    """Settings from `key=value` options, checked like a recipe's."""
    from mitigate.recipe import check_settings

    return check_settings(kind, assignments or [])
