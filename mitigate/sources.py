"""What lies where a model is said to be: adapters over each other, mixtures, bases, tokenizers, fingerprints.

Only configurations and tokenizers are read here, no weights: `models.ModelStore` loads those.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from peft import PeftConfig
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.peft_utils import find_adapter_config_file

from mitigate.artifacts import fingerprint, fingerprint_files, read_json
from mitigate.errors import MitigateError
from mitigate.tokens.rules import tokenizer_rules

OVERLAY_FILE = "mitigate.json"  # beside an adapter trained by `unlearn`: the adapters that lie under it
MIXTURE_FILE = "mixture.json"  # instead of weights, where `retrain` fitted several shards: their directories
_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt"}


def mixture_members(source: str | Path) -> list[str]:
    """The model directories that `source` is a mixture of; empty for any other model."""
    file = Path(source) / MIXTURE_FILE
    return [str(Path(source) / name) for name in read_json(file)["members"]] if file.is_file() else []


def adapter_stack(source: str) -> list[str]:
    """The adapter directories that make up `source`, lowest first; empty for a plain model."""
    directory = Path(source)
    overlay = directory / OVERLAY_FILE
    stated = read_json(overlay) if overlay.is_file() else {}
    if directory.exists():
        if not stated and not (directory / "adapter_config.json").is_file():
            return []
    elif not _is_hub_adapter(source):
        return []
    below: list[str] = stated.get("over", [])
    own = str(directory / stated["adapter"]) if "adapter" in stated else source
    for lower in below:
        if not exists(lower):
            raise MitigateError(
                f"{source}: it lies over the adapter {lower!r}, which is not there; restore that directory"
            )
    return [*below, own]


@lru_cache
def _is_hub_adapter(source: str) -> bool:
    """Whether the hub has an adapter of this name; asked once, for without a network the answer takes long."""
    try:
        return find_adapter_config_file(source) is not None
    except OSError:
        return False


def load_tokenizer(
    source: str | Path, *, base: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, or that of its base where an adapter directory has none.

    Raises:
        MitigateError: there is none.
    """
    source = next(iter(mixture_members(source)), str(source))
    stack = adapter_stack(source)
    if stack and not (Path(source) / "tokenizer_config.json").is_file():
        source = base or base_of(stack[0])
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise MitigateError(
            f"{source}: no tokenizer there ({first_line(error)}); save the tokenizer beside the model"
        ) from error


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Fingerprint of what decides the ids of a text, see `tokenizer_rules`: not of the chat template."""
    return fingerprint(tokenizer_rules(tokenizer))


def model_fingerprint(source: str | Path, *, base: str | None = None) -> str:
    """Fingerprint of a model's weights and configuration; of an adapter, that of its base too.

    Local weights are hashed whole. A hub model is known by its commit.
    """
    if members := mixture_members(source):
        return fingerprint([model_fingerprint(member, base=base) for member in members])
    stack = adapter_stack(str(source))
    if stack:
        parts = [model_fingerprint(base or base_of(stack[0]))]
        return fingerprint(parts + [_directory_fingerprint(Path(d)) if Path(d).is_dir() else _commit(d) for d in stack])
    path = Path(source)
    return _directory_fingerprint(path) if path.is_dir() else _commit(str(source))


def names_missing_base(source: str) -> bool:
    """Whether a model is an adapter whose base is not where its adapter_config.json says."""
    stack = adapter_stack(next(iter(mixture_members(source)), source))
    return bool(stack) and not exists(base_of(stack[0]))


def base_of(adapter: str) -> str:
    """The base of an adapter; a relative path counts from the working directory, then from the adapter."""
    base = PeftConfig.from_pretrained(adapter).base_model_name_or_path or ""
    if not Path(base).exists() and (Path(adapter) / base).exists() and base:
        return str(Path(adapter) / base)
    return base


def exists(source: str) -> bool:
    """Whether there is a directory or file of this name, or a hub model."""
    if source and Path(source).exists():
        return True
    if not source or source.startswith((".", "/", "~")) or source.count("/") > 1:
        return False  # a path, not a hub id
    try:
        AutoConfig.from_pretrained(source)
    except (OSError, ValueError):
        return False
    return True


def check_weights(source: str, *, allow_pickle: bool) -> None:
    """Make sure that a directory holds a model or an adapter.

    Raises:
        MitigateError: it does not, or only as pickles where these are not allowed.
    """
    path = Path(source)
    if not path.is_dir():
        if path.is_file():
            raise MitigateError(f"{source}: a file; give the directory that holds config.json and the weights")
        if not exists(source):
            raise MitigateError(f"{source}: no such directory, and no such model on the hub; check the path")
        return
    adapter = (path / "adapter_config.json").is_file()
    if not adapter and not (path / "config.json").is_file():
        raise MitigateError(f"{source}: has no config.json; give a directory made by save_pretrained")
    pattern = "adapter_model*" if adapter else "*"
    suffixes = {file.suffix for file in path.glob(pattern)} & _WEIGHT_SUFFIXES
    if not suffixes:
        raise MitigateError(f"{source}: has no weights (*.safetensors); save the model with save_pretrained")
    if ".safetensors" not in suffixes and not allow_pickle:
        raise MitigateError(
            f"{source}: its weights are pickled, and loading them can run code; convert them to safetensors, "
            "or set models.allow_pickle: true if you trust them"
        )


def first_line(error: Exception) -> str:
    """The first line of an error's message, for a message of ours."""
    return str(error).strip().split("\n", maxsplit=1)[0][:200]


def _directory_fingerprint(path: Path) -> str:
    names = {"config.json", "adapter_config.json", OVERLAY_FILE}
    return fingerprint_files(file for file in path.iterdir() if file.suffix in _WEIGHT_SUFFIXES or file.name in names)


def _commit(source: str) -> str:
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise MitigateError(
            f"{source}: no such directory, and no such model on the hub; check the path ({first_line(error)})"
        ) from None
    return f"{source}@{getattr(config, '_commit_hash', None) or 'unknown'}"
