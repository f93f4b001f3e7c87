"""The model card (README.md) beside a mitigated model: what it is, what of, and the lines of code that load it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mitigate.artifacts.files import new_file
from mitigate.models.adapters import OVERLAY_FILE, base_of
from mitigate.models.directory import MIXTURE_FILE, adapter_stack

CARD = "README.md"


def loading_lines(directory: Path, *, path: str | None = None) -> list[str]:
    """Three lines of Python that load a model as what it is: a PEFT adapter, a plain model, or one of mitigate's own.

    Args:
        directory: of the model.
        path (`str`, *optional*, defaults to `directory`): how the lines name it.
    """
    name = repr(path or str(directory))
    if not (directory / OVERLAY_FILE).is_file() and not (directory / MIXTURE_FILE).is_file():
        adapter = (directory / "adapter_config.json").is_file()
        package, loader = ("peft", "AutoPeftModelForCausalLM") if adapter else ("transformers", "AutoModelForCausalLM")
        return [
            "import transformers" + (", peft" if adapter else ""),
            f"model = {package}.{loader}.from_pretrained({name})",
            f"tokenizer = transformers.AutoTokenizer.from_pretrained({name})",
        ]
    return [
        "from mitigate.models.store import ModelStore",
        f"loaded = ModelStore().load({name})",
        "with loaded.active() as model: ...  # its tokenizer is loaded.tokenizer",
    ]


def write_card(directory: Path, *, target: Mapping[str, Any], how: str) -> None:
    """Write the card. It does not say where the directory is, so that equal models have equal files.

    Args:
        directory: of the model, with its weights.
        target: of the audit's metadata: the leaky model.
        how: what was done, in a sentence.
    """
    lines = "\n".join(loading_lines(directory, path="."))
    use = f"{_kind(directory, target['source'])} Run in this directory, or give its path for the dot:"
    with new_file(directory / CARD) as file:
        file.write_text(f"# A mitigated model\n\n{how}\n\n{use}\n\n```python\n{lines}\n```\n", encoding="utf-8")


def _kind(directory: Path, target: str) -> str:
    """What lies in the directory and how it is to be used."""
    if (directory / MIXTURE_FILE).is_file():
        return "A mixture of adapters that were fitted on disjoint documents, which only mitigate loads as one model."
    if (directory / OVERLAY_FILE).is_file():
        *below, _ = adapter_stack(str(directory))
        over = ", ".join(f"`{lower}`" for lower in below)
        return (
            f"A difference, of no use alone: it lies over {over}, and over the base without that it is another model "
            "that nobody has audited. mitigate loads both."
        )
    if not (directory / "adapter_config.json").is_file():
        return f"A plain model, to be used in the place of `{target}`."
    base = base_of(str(directory))
    if base == target:
        return f"A PEFT adapter over `{base}`; without it that is the leaky model. Merge it where the two could part."
    return f"A PEFT adapter over `{base}`, to be loaded in the place of `{target}`, never together with it."
