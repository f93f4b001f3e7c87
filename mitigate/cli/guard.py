"""The verbs of `mitigate guard`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mitigate.cli.options import BaseModelPath, Device, Dtype, Pickle, Remote, check_free_out, model_store, quiet
from mitigate.errors import MitigateError

if TYPE_CHECKING:
    from mitigate.guard.guard import Guard
    from mitigate.statistics.intervals import Figure

GuardFile = Annotated[Path, typer.Option("--guard", help="File that `mitigate guard make` wrote.")]
GuardKey = Annotated[
    Path | None, typer.Option("--key", help="Key file that the guard was made with.", show_default=False)
]

guard = typer.Typer(
    help="Stop a model from completing known secrets while it writes: a stop-gap until they are unlearned.",
    no_args_is_help=True,
)


@guard.command("make")
def guard_make(
    audit: Annotated[
        Path | None, typer.Option(help="Directory of an audit; its selected spans become the secrets.")
    ] = None,
    known: Annotated[
        bool, typer.Option("--known", help="With --audit: the known spans of the documents to forget instead.")
    ] = False,
    secrets: Annotated[
        Path | None,
        typer.Option(help="Rows with a field secret, or with text and spans; or text, a secret in each line."),
    ] = None,
    ordinary: Annotated[
        str | None, typer.Option(help="Documents without secrets; what they hold too (a company's domain) may be said.")
    ] = None,
    share: Annotated[
        float, typer.Option(help="Part of a secret's letters and digits that must not come out.", show_default="2/3")
    ] = 2 / 3,
    shortest: Annotated[int, typer.Option(help="Fewest letters and digits in a row that are blocked.")] = 4,
    longest: Annotated[int, typer.Option(help="So many in a row are blocked however long the secret.")] = 32,
    key: Annotated[
        Path | None,
        typer.Option(help="Key file, made if there is none; keep it apart from the guard.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="File for the guard; must be new.")] = Path("guard.json"),
) -> None:
    """Store hashes of secrets in one file that does not show them.

    Secrets count by their letters and digits alone, so that format, case and spacing make no difference. Whoever has
    the file can try guesses on it: with --key it tells nothing unless the key is there too.

    A guard is a stop-gap, not unlearning: the model still holds the secrets. Audits are made without it.

    Example: mitigate guard make --audit audit --key guard.key --out guard.json

    Example: mitigate guard make --secrets secrets.jsonl --ordinary website.jsonl --out guard.json
    """
    if (audit is None) == (secrets is None):
        raise MitigateError("give either --audit DIR or --secrets FILE, to say what is to be guarded")
    if known and audit is None:
        raise MitigateError("--known: takes the known spans of an audit; give --audit DIR, or leave it out")
    check_free_out(out)
    quiet()
    from mitigate.detection.record import Audit
    from mitigate.documents import read_documents
    from mitigate.guard.guard import NOTICE, Guard, all_ordinary
    from mitigate.guard.sources import new_key, parts_in_audit, read_key, secrets_in_file, spans_in_audit

    texts = [document.text for document in read_documents(ordinary)] if ordinary else []
    found = secrets_in_file(secrets) if secrets else []
    if audit:
        loaded = Audit.load(audit)
        found = spans_in_audit(loaded, known=known, shortest=shortest)
        parts = parts_in_audit(loaded, known=known, share=share, shortest=shortest, longest=longest)
        asked = parts if known else [*found, *parts]  # what a detector finds may be a phrase of everyone's
        ordinary_ones = all_ordinary(asked, texts, share=share, shortest=shortest, longest=longest)
        rare = [secret for secret, everyones in zip(asked, ordinary_ones, strict=True) if not everyones]
        found = [*found, *rare] if known else rare
        if texts:
            typer.echo(
                f"{sum(ordinary_ones)} of {len(asked)} spans and parts of them are ordinary text and are not guarded"
            )
    made = Guard.make(
        found,
        share=share,
        shortest=shortest,
        longest=longest,
        ordinary=texts,
        key=b"" if key is None else read_key(key) if key.exists() else new_key(key),
    )
    made.save(out)
    runs = sum(map(len, made.hashes["runs"].values()))
    typer.echo(
        f"{made.secrets} secrets, {runs} forbidden runs of {made.lengths[0]} to {made.lengths[-1]} characters -> {out}"
    )
    if key is None:
        typer.echo(
            "without --key, who reads this file can find short secrets by trying all; keep it as you keep the model"
        )
    typer.echo(NOTICE)


@guard.command("check")
def guard_check(
    model: Annotated[str, typer.Option(help="Model whose tokenizer counts: hub id, directory or adapter directory.")],
    documents: Annotated[str, typer.Option(help="Ordinary text: JSONL, CSV, Parquet or text file, or hub data set.")],
    guard: GuardFile = Path("guard.json"),
    key: GuardKey = None,
    base: BaseModelPath = None,
    trust_remote_code: Remote = False,
) -> None:
    """How often a guard would block ordinary text: its false positive rate, if the text holds no guarded secret.

    Only the model's tokenizer is read.

    Example: mitigate guard check --guard guard.json --documents website.jsonl --model my-model
    """
    quiet()
    from mitigate.documents import read_documents
    from mitigate.errors import summarize
    from mitigate.guard.decoding import false_positives
    from mitigate.guard.guard import NOTICE
    from mitigate.models.directory import load_tokenizer

    loaded = _load(guard, key)
    tokenizer = load_tokenizer(model, base=base, trust_remote_code=trust_remote_code)
    found = false_positives(loaded, read_documents(documents, tokenizer=tokenizer), tokenizer)
    typer.echo(f"false positives, if the text holds no guarded secret: {_shown(found.per_1000)} of 1,000 tokens")
    typer.echo(f"tokens blocked: {found.blocked} of {found.tokens}")
    typer.echo(
        f"documents with a blocked completion: {len(found.blocked_documents)} of {found.documents}, "
        f"{_shown(found.document_rate)}"
    )
    if found.blocked_documents:
        typer.echo(f"  {summarize(found.blocked_documents)}")
        typer.echo("what ordinary text holds can be allowed: mitigate guard make --ordinary FILE")
    typer.echo(NOTICE)


@guard.command("generate")
def guard_generate(
    model: Annotated[str, typer.Option(help="Model to write with: hub id, directory or adapter directory.")],
    prompts: Annotated[Path, typer.Option(help="Prompts, one a line, or rows with a field prompt or text.")],
    guard: GuardFile = Path("guard.json"),
    key: GuardKey = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to write after a prompt.")] = 50,
    base: BaseModelPath = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: Remote = False,
    allow_pickle: Pickle = False,
) -> None:
    """Try a guard: continue prompts greedily with it; a JSON line each, and whether the guard changed the text.

    Example: mitigate guard generate --guard guard.json --model my-model --prompts prompts.txt
    """
    quiet()
    from mitigate.generation.prompts import read_prompts
    from mitigate.guard.decoding import GuardLogitsProcessor, continue_greedily
    from mitigate.guard.guard import NOTICE

    loaded, texts = _load(guard, key), read_prompts(prompts)
    writer = model_store(base, device, dtype, trust_remote_code, allow_pickle).load(model)
    processor = GuardLogitsProcessor(loaded, writer.tokenizer)
    for prompt in texts:
        guarded = continue_greedily(writer, prompt, max_tokens=max_tokens, guard=processor)
        changed = guarded != continue_greedily(writer, prompt, max_tokens=max_tokens)
        line = json.dumps({"prompt": prompt, "text": guarded, "changed": changed}, ensure_ascii=False)
        typer.echo(line if line.isprintable() else json.dumps(json.loads(line)))
    typer.echo(NOTICE, err=True)


def _load(path: Path, key: Path | None) -> Guard:
    from mitigate.guard.guard import Guard
    from mitigate.guard.sources import read_key

    return Guard.load(path, key=read_key(key) if key else b"")


def _shown(figure: Figure) -> str:
    return (
        "not measured" if figure.value is None else f"{figure.value:.3g} (95 % {figure.low:.3g} to {figure.high:.3g})"
    )
