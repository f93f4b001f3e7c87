"""What lies where a model is said to be: adapters over each other, mixtures, bases, tokenizers, fingerprints.

Only configurations and tokenizers are read here, no weights: `models.ModelStore` loads those.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from mitigate.artifacts.files import check_digests, fingerprint, fingerprint_files
from mitigate.errors import MitigateError, first_line
from mitigate.models.adapters import (
    ADAPTER_CONFIG,
    MERGE_FIRST,
    OVERLAY_FILE,
    adapter_settings,
    base_of,
    hub_weights,
    is_adapter,
    read_object,
    settings_that_matter,
    takes_lora_over_it,
)
from mitigate.models.weights import weight_files

MIXTURE_FILE = "mixture.json"  # instead of weights, where `retrain` fitted several shards: their directories
# Fields of config.json and tokenizer_config.json that change neither logits nor token ids.
_CONFIG_WITHOUT_EFFECT = {
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "transformers_version",
    "use_cache",
}
_TOKENIZER_FILES = ("added_tokens.json", "merges.txt", "special_tokens_map.json", "tokenizer.model", "vocab.json")
_TOKENIZER_WITHOUT_EFFECT = {
    "chat_template",  # it is in the text of the documents
    "clean_up_tokenization_spaces",
    "max_length",
    "model_max_length",
    "name_or_path",
    "pad_to_multiple_of",
    "padding_side",
    "transformers_version",
    "truncation_side",
    "truncation_strategy",
}


def mixture_members(source: str | Path) -> list[str]:
    """The model directories that `source` is a mixture of; empty for any other model.

    Raises:
        MitigateError: mixture.json is damaged, or names a mixture.
    """
    file = Path(source) / MIXTURE_FILE
    if not os.path.isfile(file):
        return []
    check_digests(file.parent)
    names = read_object(file).get("members")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise MitigateError(f"{file}: members is {names!r}, not a list of directories; run `mitigate retrain` again")
    members = [str(Path(source) / name) for name in names]
    for member in members:
        if os.path.isfile(Path(member) / MIXTURE_FILE):
            raise MitigateError(f"{file}: its member {member} is a mixture itself; run `mitigate retrain` again")
    return members


def is_served(source: str | Path) -> bool:
    """Whether a model is behind a server; see `mitigate.models.served`."""
    return str(source).startswith(("http://", "https://"))


def adapter_stack(source: str) -> list[str]:
    """The adapter directories that make up `source`, lowest first; empty for a plain model."""
    return resolve(source)[0]


def resolve(source: str, *, base: str | None = None) -> tuple[list[str], str]:
    """The adapters that make up a model, lowest first, and the plain model under them.

    An adapter lies over what our record says (`mitigate.json`), else over its base_model_name_or_path, which may be an
    adapter too: one trained by preference over one trained by example, and so on.

    Args:
        source: hub id, model directory or adapter directory.
        base (*optional*): what to put the lowest adapter over, instead of the one that it names; may be an adapter.

    Returns:
        adapters, and the base as it is named, which need not exist.

    Raises:
        MitigateError: a damaged configuration, an adapter that lies over itself, or one under it that is missing.
    """
    if is_served(source):
        return [], base or ""
    stack: list[str] = []
    current = str(source)
    while _may_exist(current) and (is_adapter(current) or os.path.isfile(Path(current) / OVERLAY_FILE)):
        below, own = _record(current)
        for part in (own, *below[1:]):
            if place_of(part) in map(place_of, stack):
                chain = " over ".join([part, *stack[: [place_of(one) for one in stack].index(place_of(part)) + 1]])
                raise MitigateError(
                    f"{source}: this adapter lies over itself ({chain}); write the base that it was trained on into "
                    f"base_model_name_or_path of its {ADAPTER_CONFIG}"
                )
        stack = [*below[1:], own, *stack]
        current = below[0] if below else base_of(own)
    if base and stack and place_of(base) not in map(place_of, stack):
        under, current = resolve(base)
        stack = [*under, *stack]
    return stack, current


def _record(adapter: str) -> tuple[list[str], str]:
    """The adapters that our record says lie under an adapter, lowest first (none without a record), and where it is."""
    overlay = Path(adapter) / OVERLAY_FILE
    if not overlay.is_file():
        return [], adapter
    stated = read_object(overlay)
    below, own = stated.get("over", []), stated.get("adapter", "")
    if not isinstance(own, str) or not isinstance(below, list) or not all(isinstance(lower, str) for lower in below):
        raise MitigateError(
            f"{overlay}: says {stated!r}, not which adapters lie under this; run `mitigate unlearn` again"
        )
    for lower in below:
        if not exists(lower) or not is_adapter(lower):
            raise MitigateError(
                f"{adapter}: it lies over the adapter {lower!r}, which is not there; restore that directory"
            )
    own = str(Path(adapter) / own) if own else adapter
    if not is_adapter(own):
        raise MitigateError(f"{adapter}: its adapter {own} is not there; restore that directory")
    return below, own


def load_tokenizer(
    source: str | Path, *, base: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; of an adapter without one, that of the next one under it which has one.

    Raises:
        MitigateError: there is none.
    """
    source = next(iter(mixture_members(source)), str(source))
    stack, root = resolve(source, base=base)
    if is_served(source) and not root:
        raise MitigateError(f"{source}: a server; give the model whose tokenizer it has: models.base or --base")
    parts = [source, *reversed(stack)] if stack else []
    found = next((part for part in parts if (Path(part) / "tokenizer_config.json").is_file()), root)
    try:
        return AutoTokenizer.from_pretrained(found, trust_remote_code=trust_remote_code)
    except Exception as error:  # damaged files raise whatever the reader of their kind raises
        raise MitigateError(
            f"{found}: no tokenizer there ({first_line(error)}); save the tokenizer beside the model"
        ) from error


def model_fingerprint(source: str | Path, *, base: str | None = None) -> str:
    """Fingerprint of what decides a model's logits and token ids; of an adapter, of all that lies under it too.

    That is weights, configuration and tokenizer files: not where they lie, and not what training left beside them.
    Local weights are hashed whole. A hub model is known by its commit.

    Raises:
        MitigateError: there is no such model, or its files are damaged.
    """
    if is_served(source):  # what its weights are cannot be seen
        return fingerprint(["served", str(source)])
    if members := mixture_members(source):
        return fingerprint([model_fingerprint(member, base=base) for member in members])
    stack, root = resolve(str(source), base=base)
    parts = [_directory_fingerprint(part) if os.path.isdir(part) else _commit(part) for part in (root, *stack)]
    return fingerprint(parts) if stack else parts[0]


def names_missing_base(source: str) -> bool:
    """Whether a model is an adapter whose base is not where its adapter_config.json says, or is behind a server."""
    if is_served(source):
        return True
    stack, root = resolve(next(iter(mixture_members(source)), source))
    return bool(stack) and not exists(root)


def place_of(source: str) -> str:
    """What tells a model from another: where it really lies, or its hub id."""
    return os.path.realpath(source) if os.path.exists(source) else source


def check_layering(source: str, *, base: str | None = None, whole: bool = False) -> None:
    """Refuse, before any work, a model from which nothing can be trained.

    Args:
        source: the model to start from.
        base (*optional*): as for `resolve`.
        whole (`bool`, *optional*, defaults to `False`): all weights are to be trained and saved, not a LoRA adapter.

    Raises:
        MitigateError: an adapter, for a whole model; or an adapter over which no LoRA adapter can lie.
    """
    if is_served(source):
        raise MitigateError(
            f"{source}: a server; nothing can be trained over it: give the weights, or audit alone (unlearn: null)"
        )
    stack = resolve(next(iter(mixture_members(source)), source), base=base)[0]
    if stack and whole:
        raise MitigateError(f"{source}: an adapter; method full trains a whole model: use lora, or {MERGE_FIRST}")
    for part in stack:
        if not takes_lora_over_it(part):
            settings = adapter_settings(part)
            kind = settings["peft_type"] + (
                " with trainable_token_indices" * bool(settings.get("trainable_token_indices"))
            )
            raise MitigateError(
                f"{part}: no new LoRA adapter can be trained over an adapter of kind {kind}; {MERGE_FIRST}"
            )


def exists(source: str) -> bool:
    """Whether there is a directory or file of this name, or a hub model."""
    if source and os.path.exists(source):
        return True
    if not _may_exist(source):
        return False
    if is_adapter(source):
        return True
    try:
        AutoConfig.from_pretrained(source)
    except (OSError, ValueError):
        return False
    return True


def _may_exist(source: str) -> bool:
    """Whether a name is a path of something that is there, or could be a hub id."""
    if not source or os.path.exists(source):
        return bool(source)
    return len(source) <= 96 and not source.startswith((".", "/", "~")) and source.count("/") <= 1


def check_weights(source: str, *, allow_pickle: bool) -> None:
    """Make sure that a directory holds a model or an adapter.

    Raises:
        MitigateError: it does not, or only as pickles where these are not allowed, or they are of ours and damaged.
    """
    if not os.path.isdir(source):
        if os.path.isfile(source):
            raise MitigateError(f"{source}: a file; give the directory that holds config.json and the weights")
        if not exists(source):
            raise MitigateError(f"{source}: no such directory, and no such model on the hub; check the path")
        if is_adapter(source) and not allow_pickle and hub_weights(source) is None:  # of models transformers sees to it
            raise MitigateError(
                f"{source}: has no adapter_model.safetensors, and loading pickled weights can run code; convert them "
                "to safetensors, or set models.allow_pickle: true if you trust them"
            )
        return
    path = Path(source)
    check_digests(path)
    adapter = (path / ADAPTER_CONFIG).is_file()
    if not adapter and not (path / "config.json").is_file():
        raise MitigateError(f"{source}: has no config.json; give a directory made by save_pretrained")
    files = _weights(path)
    if not files:
        stem = "adapter_model" if adapter else "model"
        raise MitigateError(f"{source}: has no weights ({stem}.safetensors); save the model with save_pretrained")
    if files[0].suffix != ".safetensors" and not allow_pickle:
        raise MitigateError(
            f"{source}: its weights are pickled, and loading them can run code; convert them to safetensors, "
            f"or set models.allow_pickle: true if you trust them ({files[0].name})"
        )


def _weights(path: Path) -> list[Path]:
    if (path / ADAPTER_CONFIG).is_file():
        return weight_files(path, stem="adapter_model", pickled="adapter_model")
    return weight_files(path)


def _directory_fingerprint(source: str) -> str:
    path = Path(source)
    if (path / ADAPTER_CONFIG).is_file():
        settings = settings_that_matter(source)
    else:
        settings = _without(read_object(path / "config.json"), _CONFIG_WITHOUT_EFFECT)
    tokenizer: dict[str, Any] = {}
    if (path / "tokenizer.json").is_file():
        tokenizer["tokenizer.json"] = _without(read_object(path / "tokenizer.json"), {"padding", "truncation"})
    if (path / "tokenizer_config.json").is_file():
        tokenizer["config"] = _without(read_object(path / "tokenizer_config.json"), _TOKENIZER_WITHOUT_EFFECT)
    others = [path / name for name in _TOKENIZER_FILES if (path / name).is_file()]
    return fingerprint([settings, tokenizer, fingerprint_files(others), fingerprint_files(_weights(path))])


def _without(values: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _commit(source: str) -> str:
    name = ADAPTER_CONFIG if is_adapter(source) else "config.json"
    try:
        path = Path(hf_hub_download(source, name))
    except (OSError, ValueError) as error:
        raise MitigateError(
            f"{source}: no such directory, and no such model on the hub; check the path ({first_line(error)})"
        ) from None
    return f"{source}@{path.parent.name}"  # the file lies in .../snapshots/COMMIT
