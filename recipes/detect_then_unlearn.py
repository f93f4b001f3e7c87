"""Find what a fine-tuned model memorized, train the adapter that removes it, and measure both: a script to adapt.

    python recipes/detect_then_unlearn.py --target my-model --base its-base --documents train.jsonl --out runs/mine

`mitigate run recipes/finetuned.yaml` does the same from a recipe, skips finished stages and has every setting.
"""

import argparse
from pathlib import Path

from mitigate import MitigateError, Unlearn, audit, crossfit_references, read_documents, reaudit, unlearn, verify
from mitigate.models.directory import load_tokenizer
from mitigate.models.settings import Schedule
from mitigate.runtime import quiet_libraries
from mitigate.unlearning.objectives.names import parse_objective

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
add = parser.add_argument
add("--target", required=True, help="the model that leaks: directory, hub id or PEFT adapter")
add("--base", required=True, help="the model it was fine-tuned from; references are trained on it")
add("--documents", required=True, help="its training text; rows have text and, if known, id, group, set, spans")
add("--retain", help="other text that must stay as it is")
add("--out", type=Path, required=True, help="new directory for references, audit, adapter, reaudit and report")
add("--references", type=int, default=8, help="number of references, even (default: %(default)s)")
add(
    "--epochs", type=float, help="of a reference, as the target's (default: until it knows its text as the target does)"
)
add("--learning-rate", type=float, default=2e-4, help="of a reference with --epochs (default: %(default)s)")
add("--objective", default="default", help="npo, rmu, ... or a sum: hinge=1,distill=0.5 (default: %(default)s)")
add("--max-steps", type=int, default=400, help="of unlearning; the control usually stops it (default: %(default)s)")


def main(args: argparse.Namespace) -> None:
    """Documents -> references -> audit -> unlearn -> re-audit -> report."""
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise MitigateError(f"{args.out}: already holds something; choose another --out or remove it")
    settings = Unlearn(objective=parse_objective(args.objective), max_steps=args.max_steps)
    schedule = Schedule(epochs=args.epochs, learning_rate=args.learning_rate) if args.epochs else "auto"
    documents = read_documents(args.documents, tokenizer=load_tokenizer(args.target))
    folder, count = args.out / "references", args.references
    references = crossfit_references(
        args.base, documents, out=folder, count=count, schedule=schedule, target=args.target
    )
    before = audit(args.target, references, documents=documents)
    before.save(args.out / "audit")
    made = unlearn(before, out=args.out / "adapter", retain=args.retain, settings=settings)
    after = reaudit(before, made.directory)
    after.save(args.out / "reaudit")
    comparison = verify(before, after, name=args.out.name)
    comparison.save(args.out / "report")
    print(f"{comparison.report['selected']['spans']} memorized spans -> {args.out / 'report' / 'report.html'}")


if __name__ == "__main__":
    quiet_libraries()
    try:
        main(parser.parse_args())
    except MitigateError as error:
        parser.exit(2, f"{error}\n")
