"""What the command line's verbs share: options with one name, help and default everywhere, and their handling."""

from __future__ import annotations

import csv
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from mitigate.errors import MitigateError

if TYPE_CHECKING:
    from mitigate.documents import Request
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

ForgetIds = Annotated[
    list[str] | None,
    typer.Option(
        help="Erasure request: ids of documents to forget, with commas between them; may be given again.",
        show_default=False,
    ),
]
ForgetContains = Annotated[
    list[str] | None,
    typer.Option(
        help="Erasure request: a text, such as a name, that stands in the documents; may be given again.",
        show_default=False,
    ),
]
ForgetWhere = Annotated[
    list[str] | None,
    typer.Option(
        help="Erasure request: field=value that the documents' rows have; given again, all must hold.",
        show_default=False,
    ),
]
Linked = Annotated[
    bool,
    typer.Option("--linked/--no-linked", help="Forget the same secrets in other documents too, or only list them."),
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


def leave_processes() -> None:
    """Close the process group at the end of a command that succeeded; without it a process may abort while it ends.

    Not after a failure: the other processes may still wait for this one, and closing would wait for them.
    """
    torch = sys.modules.get("torch")  # a command that did without it has no group
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


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


def print_loading(directory: Path) -> None:
    """Print the lines of code that load a mitigated model."""
    from mitigate.unlearning.card import loading_lines

    typer.echo("\n".join(["to load it:", *(f"    {line}" for line in loading_lines(directory))]))


def settings_from(kind: Any, assignments: list[str] | None) -> Any:
    """Settings from `key=value` options, checked like a recipe's."""
    from mitigate.recipe import check_settings

    return check_settings(kind, assignments or [])


def request_from(
    ids: list[str] | None, contains: list[str] | None, where: list[str] | None, *, linked: bool
) -> Request | None:
    """The erasure request of the --forget options; None where there is none of them.

    Raises:
        MitigateError: a --forget-where that is not field=value, or --no-linked without a request.
    """
    from mitigate.documents import Request
    from mitigate.mistakes import checked
    from mitigate.yaml_text import load_yaml

    if not (ids or contains or where):
        if not linked:
            raise MitigateError("--no-linked belongs to an erasure request: give --forget-ids, -contains or -where")
        return None
    values: dict[str, Any] = {"contains": contains or [], "where": {}, "linked": linked}
    values["ids"] = [doc_id for row in csv.reader(ids or [], skipinitialspace=True) for doc_id in row]
    for condition in where or []:
        name, equals, text = condition.partition("=")
        if not equals or not name:
            raise MitigateError(f"--forget-where {condition}: written field=value, for instance customer=17")
        try:
            value = load_yaml(text)
        except yaml.YAMLError as error:
            raise MitigateError(
                f"--forget-where {condition}: the value is not YAML ({' '.join(str(error).split())})"
            ) from None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        values["where"][name] = [value, text.strip()] if number else value  # CSV rows have it as it is written
    return checked(Request, values, name="erasure request")
