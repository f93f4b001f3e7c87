"""Write the figures of README.md and docs/ from recipes/results/*.json, where every one of them comes from.

    python recipes/tables.py            # after a result was recorded anew: rewrites what changed
    python recipes/tables.py --check    # writes nothing; names what differs and ends with status 1

A table stands between the lines `<!-- table: NAME -->` and `<!-- end -->`; NAME is a key of TABLES below, which says
what function of table_rows.py makes it from which files. Under each table stand the commands that make these files,
from COMMANDS. A sentence that quotes a figure is in QUOTES, with `{}` for the figure.

To add a table: write its function, name it in TABLES, put the two lines into a page, run this. Needs only Python.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import table_rows as rows_of
from table_rows import Files, Rows

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "recipes" / "results"

# What makes each file of recipes/results. In capitals: directories with that data (LUME, TOFU) or model (STORIES260K).
LUME = "mitigate run recipes/lume.yaml data.root=LUME"
COMMANDS = {
    "quickstart": "make demo",
    "lume": f"{LUME} out=runs/lume",
    "hard": "mitigate run recipes/hard.yaml data.root=DATA out=runs/hard 'data.documents.0.limit=200'"
    " 'data.documents.0.sets={forget: 30, retain: 60, holdout: rest}'",
    "lume-hinge": f"{LUME} unlearn.objective='{{hinge: 1, distill: 0.5}}' out=runs/lume",
    "lume-retrain": f"{LUME} unlearn=null retrain.redact=placeholder out=runs/lume",
    "lume-erasure": f"{LUME} \"forget={{contains: ['Margarita Bronze']}}\" out=runs/lume",
    "stories": "mitigate run recipes/stories.yaml out=runs/stories",
    "tofu": "mitigate run recipes/tofu.yaml data.root=TOFU out=runs/tofu",
    "first-hour": "python tests/first_hour.py --kinds chat plain --base STORIES260K --out runs/first-hour"
    " -- unlearn.learning_rate=2e-3 unlearn.max_steps=150",
    "kept-hard": "python tests/kept_entries.py --run runs/hard --documents 40 --out kept-hard.json",
    "simulated-reports": "python -m tests.simulated_reports --reports 200 --out simulated-reports.json",
    "stretched": "python tests/stretched_targets.py --base runs/quickstart/lab/base --out runs/stretched",
    "stretched-hard": "python tests/stretched_targets.py --among runs/hard-detect --seed 0 --out runs/stretched-hard",
    "detect": "mitigate bench detect --seeds 0 1 2 --out runs/detect --plot",
    "detect-lume": "mitigate bench detect --documents lume-people.jsonl --seeds 0 1 2 --out runs/detect-lume --plot",
    "detect-k2": "mitigate bench detect --seeds 3 --models 6 --references 2 --truth-models 2 --out runs/detect-k2",
    "detect-hard": "mitigate bench detect --world hard --base BASE29M --seeds 0 1 2 --set 'people={0: 30, 1: 80}'"
    " --out runs/hard-detect",
    "ablation": "mitigate bench ablation --seeds 0 1 2 --out runs/detect",
    "ablation-k8": "mitigate bench ablation --models 18 --targets 3 --no-lora --base BASE --out runs/ablation-k8",
    "population": "mitigate bench population --seeds 0 1 2 --out runs/detect",
    "population-wikitext": "mitigate bench population --documents wikitext.jsonl --base STORIES260K --models 6"
    " --references 2 --set truth_models=2 --set schedule.epochs=6 --set schedule.learning_rate=3e-3"
    " --set schedule.batch_size=16 --out runs/wikitext",
    "unlearn": "mitigate bench unlearn --seeds 0 1 2 --out runs/unlearn --plot",
    "unlearn-lume": "mitigate bench unlearn --documents lume-people.jsonl --seeds 0 1 2"
    " --objectives default,npo,grad_diff,rmu,idk,match --out runs/unlearn-lume --plot",
    "unlearn-hard": "mitigate bench unlearn --world hard --base BASE29M --seeds 0 1 2 --objectives default"
    " --scopes token --tries 1 --no-retrain --set forget=40 --set retain=60 --set holdout=60 --set anchors=40"
    " --set prose=40 --set 'epochs=[5]' --set unlearn.batch_size=16 --set unlearn.check_every=10"
    " --out runs/hard-unlearn",
    "unlearn-hard-3": "mitigate bench unlearn --world hard --base BASE29M --seeds 0 1 2 --objectives default"
    " --scopes token --tries 1 --no-retrain --set forget=40 --set retain=60 --set holdout=60 --set anchors=40"
    " --set prose=40 --set 'epochs=[3]' --set unlearn.batch_size=16 --set unlearn.check_every=10"
    " --out runs/hard-unlearn",
    "unlearn-hard-npo": "mitigate bench unlearn --world hard --base BASE29M --seeds 0 --objectives npo,default"
    " --scopes sequence --tries 3 --no-retrain --set forget=24 --set retain=36 --set holdout=36 --set anchors=24"
    " --set prose=24 --set 'epochs=[5]' --set unlearn.batch_size=8 --set unlearn.max_steps=60"
    " --set unlearn.check_every=10 --out runs/hard-npo",
    "speed": "mitigate bench speed --steps 10 --out runs/speed",
    "speed-gpt2": "OMP_NUM_THREADS=1 mitigate bench speed --shape gpt2 --parts audit --set tokens=600 --out runs/speed",
    "memory": "mitigate bench speed --parts memory --out runs/speed",
    "proof-quickstart": "mitigate verify --run runs/quickstart",
    "cheats": "mitigate bench verify --seeds 0 1 2 --out runs/cheats"
    " --set 'proof.attacks=[judges,min_k,twins,forensic,layers,bfloat16,int8,nf4,q4_0,relearn_forgotten,"
    "relearn_related,relearn_retained,relearn_plain,true_prefix,short_prefix,"
    "without_cues,reworded,question,sampled]'",
    "honest-hard": "mitigate verify --audit SEED/audits/known --model SEED/models/document-oracle-1 --oracle"
    " SEED/models/document-oracle-0 --set 'attacks=[judges,min_k,twins,forensic,kept,layers,nf4]' --out EVIDENCE",
    "proof-hard": "mitigate verify --run runs/hard",
}

# --- what stands where ------------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """A function that gives the rows, and the results files that it reads."""

    rows: Callable[[Files], Rows]
    files: tuple[str, ...]


TABLES = {
    "headline": Table(rows_of.headline, ("quickstart", "hard")),
    "runs": Table(rows_of.runs, ("quickstart", "lume", "stories", "tofu")),
    "run-hard": Table(rows_of.runs, ("hard",)),
    "lume-variants": Table(rows_of.runs, ("lume", "lume-hinge", "lume-retrain", "lume-erasure")),
    "tofu": Table(rows_of.tofu, ("tofu",)),
    "first-hour": Table(rows_of.first_hour, ("first-hour",)),
    "simulated-reports": Table(rows_of.simulated, ("simulated-reports",)),
    "stretched": Table(rows_of.stretched, ("stretched",)),
    "stretched-hard": Table(rows_of.stretched, ("stretched-hard",)),
    "detect": Table(rows_of.detect, ("detect",)),
    "detect-lume": Table(rows_of.detect, ("detect-lume",)),
    "detect-found": Table(rows_of.detect_found, ("detect", "detect-lume", "detect-k2")),
    "detect-hard": Table(rows_of.detect_hard, ("detect-hard",)),
    "detect-hard-found": Table(rows_of.detect_hard_found, ("detect-hard",)),
    "ablation": Table(rows_of.ablation, ("ablation",)),
    "reference-kinds": Table(rows_of.reference_kinds, ("ablation",)),
    "ablation-k8": Table(rows_of.more_references, ("ablation-k8",)),
    "population": Table(rows_of.population, ("population",)),
    "population-wikitext": Table(rows_of.population, ("population-wikitext",)),
    "unlearn": Table(rows_of.unlearning, ("unlearn",)),
    "unlearn-lume": Table(rows_of.unlearning, ("unlearn-lume",)),
    "unlearn-hard": Table(rows_of.hard_unlearning, ("unlearn-hard",)),
    "unlearn-hard-3": Table(rows_of.hard_unlearning, ("unlearn-hard-3",)),
    "objectives": Table(rows_of.objectives, ("unlearn",)),
    "objectives-hard": Table(rows_of.objectives, ("unlearn-hard-npo",)),
    "objectives-lume": Table(rows_of.objectives, ("unlearn-lume",)),
    "equal-forgetting": Table(rows_of.equal_forgetting, ("unlearn", "unlearn-lume")),
    "speed": Table(rows_of.speed, ("speed",)),
    "speed-gpt2": Table(rows_of.audits, ("speed-gpt2",)),
    "memory": Table(rows_of.memory, ("memory",)),
    "kept-hard": Table(rows_of.kept, ("kept-hard",)),
    "cheats": Table(rows_of.cheats, ("cheats",)),
    "honest-hard": Table(rows_of.honest, ("honest-hard",)),
    "proof-hard": Table(rows_of.attacks, ("proof-hard",)),
    "proof-quickstart": Table(rows_of.attacks, ("proof-quickstart",)),
}


class Figure(NamedTuple):
    """A figure that a sentence quotes: its results file, the keys down to it, and how Python formats it."""

    file: str
    keys: str  # with slashes between them
    form: str = ".3f"

    def text(self) -> str:
        """As it stands in the sentence."""
        value = read(self.file)
        for key in self.keys.split("/"):
            value = value[int(key)] if isinstance(value, list) else value[key]
        return format(value, self.form).replace("-", "−").replace("%", " %")


class Quote(NamedTuple):
    """A sentence of a page, whatever its line breaks, with `{}` for each figure."""

    page: str
    sentence: str
    figures: tuple[Figure, ...]

    def pattern(self) -> re.Pattern[str]:
        """Finds the sentence with any figures."""
        parts = self.sentence.split("{}")
        parts = [r"\s+".join(map(re.escape, re.split(r"\s+", part))) for part in parts]
        return re.compile(FIGURE.join(f"({part})" for part in parts))


FIGURE = r"(?:[+−]?\d(?:[\d.,]*\d)?(?: %)?)"
QUOTES = (
    Quote(
        "README.md",
        '"cannot tell": {} and {} people are too few',
        tuple(Figure(file, "leakage/before/people/members", "d") for file in ("quickstart", "hard")),
    ),
    Quote(
        "docs/benchmarks.md",
        "(interval of the share {} to {}; LUME {} to {})",
        tuple(
            Figure(file, f"retrain/mask_known/token_oracle_distance_ratio/{end}")
            for file in ("unlearn", "unlearn-lume")
            for end in ("low", "high")
        ),
    ),
    Quote(
        "docs/benchmarks.md",
        "Of {} e-mail addresses {} came back word for word before and {} after; the retrained model guesses {}",
        (
            Figure("hard", "extraction/kinds/email/secrets", "d"),
            *(Figure("hard", f"extraction/kinds/email/{side}", ".1%") for side in ("before", "after", "oracle")),
        ),
    ),
    Quote("docs/benchmarks.md", "the loss is within {} of its", (Figure("speed", "loss_difference", ".2%"),)),
    Quote("docs/benchmarks.md", "parameters is {} of it", (Figure("unlearn", "adapter_share_at_1b/share", ".1%"),)),
)

# --- pages ------------------------------------------------------------------------------------------------------------

BLOCK = re.compile(r"<!-- table: (?P<name>\S+) -->\n(?P<body>.*?)<!-- end -->", re.DOTALL)


def read(name: str) -> Any:
    """The content of a results file."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def block(name: str, page: Path) -> str:
    """A table with the commands and files that it comes from, as Markdown for a page."""
    table = TABLES[name]
    head, *rows = table.rows({file: read(file) for file in table.files})
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    sources = [
        f"`{COMMANDS[file]}`: [{file}.json]({os.path.relpath(RESULTS / file, page.parent)}.json)"
        for file in table.files
    ]
    return "\n".join([*lines, "", *(sources if len(sources) == 1 else (f"- {source}" for source in sources))])


def written(text: str, page: Path) -> str:
    """A page's text with every table and every quoted figure as the results files have them.

    Raises:
        ValueError: a table that nobody makes or that does not end, or a quoted sentence that is not there.
    """
    names = [match["name"] for match in BLOCK.finditer(text)]
    if unknown := sorted(set(names) - set(TABLES)):
        raise ValueError(f"{page}: no table is called {', '.join(unknown)}; there are {', '.join(TABLES)}")
    if not len(names) == text.count("<!-- table:") == text.count("<!-- end -->"):
        raise ValueError(f"{page}: every `<!-- table: NAME -->` line needs its `<!-- end -->` line")
    text = BLOCK.sub(
        lambda found: f"<!-- table: {found['name']} -->\n\n{block(found['name'], page)}\n\n<!-- end -->", text
    )
    for quote in QUOTES:
        if page == ROOT / quote.page:
            found = list(quote.pattern().finditer(text))
            if len(found) != 1:
                raise ValueError(f"{page}: stands there {len(found)} times and not once: {quote.sentence}")
            parts = [*found[0].groups()]
            figures = [*(figure.text() for figure in quote.figures), ""]
            sentence = "".join(part + figure for part, figure in zip(parts, figures, strict=True))
            text = text[: found[0].start()] + sentence + text[found[0].end() :]
    return text


def pages() -> list[Path]:
    """README.md and the pages of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main() -> None:
    """Write the pages, or say which differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if a page differs")
    check = parser.parse_args().check
    differ = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        new = written(text, page)
        if new != text:
            differ.append(page.relative_to(ROOT))
            if not check:
                page.write_text(new, encoding="utf-8")
    for page in differ:
        print(f"{page}: {'differs from recipes/results; run python recipes/tables.py' if check else 'rewritten'}")
    sys.exit(1 if check and differ else 0)


if __name__ == "__main__":
    main()
