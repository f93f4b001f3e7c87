"""The rows of each table that tables.py writes: a function a table, from the content of results files.

Longer than other files, since it is a list: each function is read for itself, beside its table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

Files = Mapping[str, Any]  # name of a results file, without .json -> its content
Rows = list[list[str]]  # the first row is the header

# --- how a figure is written ------------------------------------------------------------------------------------------


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """`0.998`, `−0.020`, with `sign` `+0.205`; an en dash where there is none."""
    if value is None:
        return "–"
    text = f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")
    return text.lstrip("+−") if not text.strip("+−0.") else text


def rounded(value: float | None) -> str:
    """`2.13`."""
    return number(value, 2)


def signed(value: float | None) -> str:
    """`+0.205`, `−0.020`."""
    return number(value, sign=True)


def share(value: float | None) -> str:
    """`16.2 %`."""
    return percent(value, 1)


def percent(value: float | None, digits: int | None = None) -> str:
    """`16.2 %`; without `digits`: `16 %`, `1.3 %`; nothing at all is `0`."""
    if value is None:
        return "–"
    if digits is None:
        digits = 0 if value >= 0.0995 else 1
    return "0" if value == 0 else f"{100 * value:.{digits}f} %".replace("-", "−")


def change(figure: Mapping[str, Any], form: Callable[[float | None], str], *, of: str = "") -> str:
    """`before → after`, and in brackets what a model retrained without the text reads, where it is known."""
    if figure["before"] is None and figure["after"] is None:
        return "–"
    oracle = "" if figure.get("oracle") is None else f" ({form(figure['oracle'])})"
    return f"{form(figure['before'])} → {form(figure['after'])}{of}{oracle}"


# --- runs of recipes: their report.json -------------------------------------------------------------------------------


def _leakage(key: str) -> Callable[[Any], str]:
    def shown(report: Any) -> str:
        seen = report.get("never_seen") or {}
        oracle = seen.get(key) if seen.get("source") == "oracle" else None
        return change({side: report["leakage"][side][key] for side in ("before", "after")} | {"oracle": oracle}, number)

    return shown


def _extraction(report: Any) -> str:
    return change(report["extraction"], share, of=f" of {report['extraction']['secrets']}")


def _how(report: Any) -> str:
    if report["retrain"]:
        return f"retrained, {report['retrain']['redact']}"
    return " + ".join(
        name if weight == 1 else f"{weight:g} {name}" for name, weight in report["unlearn"]["objective"].items()
    )


def _ended(report: Any) -> str:
    return "–" if report["unlearn"] is None else report["unlearn"]["stopped"]


def _model(report: Any) -> str:
    return "–" if report["unlearn"] is None else f"{report['unlearn']['model_parameters']:,}"


def _verdict(report: Any) -> str:
    return report["verdict"]["status"].replace("_", " ") if "verdict" in report else "recorded before verdicts"


FORGOTTEN = "span AUC: forgotten secrets against never-seen ones (0.5: as if never seen)"
EXTRACTED = "sensitive values completed exactly from their true prefix"
RUN_FIGURES: dict[str, Callable[[Any], str]] = {
    "parameters of the model": _model,
    "unlearned by": _how,
    FORGOTTEN: _leakage("span_auc"),
    "document AUC": _leakage("document_auc"),
    EXTRACTED: _extraction,
    "distance to a model retrained without these people, nats": lambda r: change(
        {side: r["oracle_distance"][side] for side in ("before", "after")}, rounded
    ),
    "mean score of the selected spans, nats": lambda r: change(
        {side: r["leakage"][side]["span_score_mean"] for side in ("before", "after")}, rounded
    ),
    "the same of never-seen text, where unlearning may stop": lambda r: rounded((r["unlearn"] or {}).get("control")),
    "loss on retained people, nats per token": lambda r: change(r["utility"]["retain_nll"], number),
    "loss on people never seen": lambda r: change(r["utility"]["holdout_nll"], number),
    "selected: share of the forgotten documents' tokens": lambda r: percent(r["selected_token_share"]),
    "selected spans, documents": lambda r: f"{r['selected']['spans']}, {r['selected']['documents']}",
    "unlearning ended": _ended,
    "verdict": _verdict,
}
BARS = {
    FORGOTTEN: "after: 0.40-0.65",
    "distance to a model retrained without these people, nats": "after / before ≤ 0.65",
    "loss on retained people, nats per token": "within 0.10 of it",
    "loss on people never seen": "within 0.10 of before",
}


def runs(files: Files) -> Rows:
    """Every figure of some runs."""
    rows = [[label, *(shown(report) for report in files.values())] for label, shown in RUN_FIGURES.items()]
    return [["before → after (retrained model)", *(f"`{name}`" for name in files)], *rows]


def headline(files: Files) -> Rows:
    """The figures of the README."""
    left_out = {"unlearned by", "document AUC", "mean score of the selected spans, nats", "unlearning ended"}
    left_out |= {"selected spans, documents", "the same of never-seen text, where unlearning may stop"}
    head, *rows = runs(files)
    return [[*head, "bar"], *([*row, BARS.get(row[0], "")] for row in rows if row[0] not in left_out)]


def tofu(files: Files) -> Rows:
    """TOFU's own figures, by the paper's definitions and as its code computes them."""
    figures = files["tofu"]["tofu"]
    released = figures["released_code"]
    rows = {
        "truth ratio of the forget questions": figures["truth_ratio"],
        "forget quality, log10 p (below −1.3: told from a retrained model)": figures["forget_quality_log10"],
        "Kolmogorov-Smirnov statistic": figures["ks_statistic"],
        "retain questions' utility": figures["retain_utility"],
        "model utility": figures["model_utility"],
        "forget quality, log10 p, as TOFU's code computes it": released["forget_quality_log10"],
        "model utility, as TOFU's code computes it": released["model_utility"],
    }
    sides = ("before", "after", "oracle")
    return [
        ["figure", "before", "after", "retrained model"],
        *([label, *(number(figure.get(side)) for side in sides)] for label, figure in rows.items()),
    ]


def first_hour(files: Files) -> Rows:
    """A user's files, in two runs each: the report's share of private values against that of a check of its own."""
    rows = []
    for kind, found in files["first-hour"].items():
        for how, run in found["runs"].items():
            verdict = run["verdict"]
            if verdict is None:
                said = "stops and asks" if run["status"] == 2 else f"status {run['status']}"
                rows.append([kind, how, f"{share(found['before'])} of {found['values']}", "–", "–", "–", "–", said])
                continue
            by_check = change({"before": found["before"], "after": run["after"]}, share, of=f" of {found['values']}")
            by_report = change(run["report"], share, of=f" of {run['report']['secrets']}")
            moved = signed(run["never_seen_loss"] - found["never_seen_loss"])
            said = f"{verdict['status'].replace('_', ' ')}: {verdict['headline']}"
            selected = share(run["selected_token_share"])
            rows.append([kind, how, by_check, by_report, moved, selected, str(run["in_clear"]), said])
    titles = ["file", "recipe", "private values that come back, by the check", "by the report"]
    titles += ["loss on never-seen text", "tokens selected", "shown in clear", "verdict"]
    return [titles, *rows]


def simulated(files: Files) -> Rows:
    """What the verdict says of simulated reports whose truth is known."""

    def told(cases: list[Any]) -> list[str]:
        every = sum(case["reports"] for case in cases)
        says = (("status", "good"), ("leaks", None), ("leaks", True))
        counts = [sum(case["reports"] for case in cases if case[key] == value) for key, value in says]
        return [f"{count} of {every}" for count in counts]

    cases = files["simulated-reports"]["verdicts"]
    rows = []
    for people in sorted({case["people"] for case in cases}):
        own = [case for case in cases if case["people"] == people]
        sides = [[case for case in own if case["clean"] == clean] for clean in (True, False)]
        rows.append([str(people), *(cell for side in sides for cell in told(side))])
    says = ("good", "cannot tell whether it leaks", "leaks")
    head = [f"{truth}: {said}" for truth in ("clean", "leaking") for said in says]
    return [["people to forget", *head], *rows]


def stretched(files: Files) -> Rows:
    """False discoveries where the target was fitted less or longer than its references."""
    (results,) = files.values()

    def rate(counted: Any) -> str:
        return "nothing chosen" if counted["false"] is None else f"{counted['false']:.3f} of {counted['chosen']:,}"

    def fitted(stretch: str) -> str:
        own, _, theirs = stretch.partition("/")
        return f"{own} epochs, references {theirs}" if theirs else f"{stretch} × as long"

    head = ["target fitted", "references gained less by", "known spans, as it stands", "found spans, as it stands"]
    rows = [
        [
            fitted(stretch),
            f"{100 * own['share']:.0f} %".replace("-", "−"),
            *(rate(own["references"][source]) for source in ("known", "found")),
            *(rate(own["detect_fdr"][source]) for source in ("known", "found")),
        ]
        for stretch, own in results.items()
    ]
    return [[*head, "known spans, `detect.fdr`", "found spans, `detect.fdr`"], *rows]


# --- benchmarks of the detector ---------------------------------------------------------------------------------------


def detect(files: Files) -> Rows:
    """Every detector, the best first."""
    (results,) = files.values()
    return _detectors([results], "", gamma=1)


def detect_hard(files: Files) -> Rows:
    """Every detector in the hard world, by epochs; the best after the most of them first."""
    (results,) = files.values()
    heads = f" after {', '.join(results['epochs'])} epochs"
    return _detectors(
        list(results["epochs"].values()), heads, gamma=2, left_out={"memorized tokens inside members, AUC"}
    )


def _detectors(measured: list[Any], heads: str, *, gamma: int, left_out: Collection[str] = ()) -> Rows:
    """A row a detector, by the last of some measurements; a column's cells are all of theirs. `gamma` is RMIA's."""
    columns = {
        "span AUC": ("span", "auc"),
        "TPR at 1 % FPR": ("span", "tpr_at_1pct_fpr"),
        "at 0.1 %": ("span", "tpr_at_0.1pct_fpr"),
        "memorized tokens inside members, AUC": ("localisation", "auc"),
        "document AUC": ("document", "auc"),
    }
    last = measured[-1]
    names = [name for name in last["span"] if name != "informia_no_kl"]  # in order it is the log-ratio
    names.sort(key=lambda name: -last["span"][name]["tpr_at_1pct_fpr"]["value"])

    def values(name: str, kind: str, key: str) -> list[float | None]:
        return [one[kind].get(name, {}).get(key, {}).get("value") for one in measured]

    columns = {
        title: at
        for title, at in columns.items()
        if title not in left_out and any(value is not None for name in names for value in values(name, *at))
    }
    titles = {"calibrated": "**`calibrated`**", "rmia": f"`rmia` (γ = {gamma})"}
    rows = [
        [titles.get(name, f"`{name}`"), *(", ".join(map(number, values(name, *at))) for at in columns.values())]
        for name in names
    ]
    return [["detector", *(f"{title}{heads}" for title in columns)], *rows]


def detect_hard_found(files: Files) -> Rows:
    """`detect_found` in the hard world, by epochs."""
    (results,) = files.values()
    heads = [f"{epochs} epoch{'s' * (epochs != '1')}" for epochs in results["epochs"]]
    return [["", *heads], *_found(list(results["epochs"].values()))]


def detect_found(files: Files) -> Rows:
    """What the calibrated detector states, finds and takes for a memory that is none."""
    return [["", "invented people", "LUME", "invented people, six models"], *_found(list(files.values()))]


def _found(measured: list[Any]) -> Rows:
    """The rows of `detect_found`; those that no file has are left out."""

    def best(results: Any) -> str:
        scores = {name: figures["tpr_at_1pct_fpr"]["value"] for name, figures in results["span"].items()}
        scores.pop("calibrated")
        name = max(scores, key=lambda name: scores[name])
        return f"{number(scores[name])} (`{name}`)"

    def controls(results: Any) -> str:
        values = [control["value"] for control in results["controls"].values()]
        return f"{number(min(values))} to {number(max(values))}"

    figures: dict[str, Callable[[Any], str]] = {
        "OUT references": lambda r: str(r["settings"]["references"]),
        "span TPR at 1 % FPR, `calibrated`": lambda r: number(r["span"]["calibrated"]["tpr_at_1pct_fpr"]["value"]),
        "the same of the best single score": best,
        "calibration error": lambda r: number(r["calibration"]["ece"]),
        "false discoveries at `fdr 0.05`": lambda r: percent(r["calibration"]["realised_fdr"], 1),
        "found unaided: token F1": lambda r: number(r["unaided"]["f1"]),
        "memorized secrets' characters inside a found span": lambda r: percent(r["unaided"]["secret_recall"], 1),
        "non-members' tokens inside a found span": lambda r: percent(r["unaided"]["non_member_share"], 2),
        "tokens of found spans that are memorized": lambda r: percent(r["unaided"]["span_precision"]),
        "non-member spans of a target": lambda r: f"{r['non_member_spans']:,}",
        "controls' AUC (chance: 0.5)": controls,
        "the tokens' log-ratio and what the truth models say they have too much: correlation": lambda r: number(
            r.get("excess_correlation", {}).get("typical")
        ),
    }
    rows = [[label, *(shown(results) for results in measured)] for label, shown in figures.items()]
    return [row for row in rows if set(row[1:]) != {"–"}]


def ablation(files: Files) -> Rows:
    """Span TPR at 1 % FPR of the published score and of two others, one part changed at a time."""
    results = files["ablation"]
    key = "tpr_at_1pct_fpr"

    def cells(variants: list[Any], *path: str) -> list[str]:
        """The three scores; where a score was not tried, a dash."""

        def one(variant: Any, names: tuple[str, ...]) -> float | None:
            found = next((variant[name] for name in names if name in variant), None)
            for step in path if found is not None else ():
                found = found[step]
            return None if found is None else found[key]["value"]

        scores = (("informia",), ("log_ratio", "informia_no_kl"), ("log_ratio_half_kl",))
        columns = [[one(variant, names) for variant in variants] for names in scores]
        return ["–" if None in column else ", ".join(map(number, column)) for column in columns]

    temperatures, offline, references = results["temperature"], results["offline_a"], results["references"]
    means = [
        {name: by[how] for name, by in results["aggregation"].items() if how in by}
        for how in ("mean", "clipped_mean", "min_k", "max_window_4")
    ]
    copies = results["copies"]
    informia, clipped = (
        ", ".join(number(copies[name][times]["value"]) for times in "124") for name in ("informia", "log_ratio_clipped")
    )
    return [
        ["", "token InfoRMIA", "without its KL (log-ratio)", "log-ratio − ½ KL"],
        ["K = 1, 2, 3 OUT references", *cells([references[k] for k in "123"], "span")],
        ["temperature 0.5, 1, 2 (K = 3)", *cells([temperatures[t] for t in ("0.5", "1", "2")], "span")],
        ["offline a = 1, 0.9, 0.5 (K = 3)", *cells([offline[a] for a in ("1", "0.9", "0.5")], "span")],
        ["the base as the only reference", *cells([results["base"]], "span")],
        ["three LoRA references instead of whole models", *cells([results["lora"]["lora"]], "span")],
        ["mean, clipped mean, min-k, best window of 4", *cells(means)],
        ["secrets in 1, 2, 4 documents (log-ratio clipped)", informia, clipped, "–"],
    ]


def reference_kinds(files: Files) -> Rows:
    """Spans of members against memorized tokens inside members, for references fitted ever less closely."""
    results = files["ablation"]
    kinds = {
        "three whole models": results["lora"]["full"],
        "three LoRA adapters": results["lora"]["lora"],
        "the base": results["base"],
    }
    rows = [
        [
            kind,
            number(of["log_ratio"]["span"]["tpr_at_1pct_fpr"]["value"]),
            number(of["log_ratio"]["localisation"]["auc"]["value"]),
        ]
        for kind, of in kinds.items()
    ]
    return [["references", "span TPR at 1 % FPR", "memorized tokens inside members, AUC"], *rows]


def more_references(files: Files) -> Rows:
    """Span TPR at 1 % FPR with more OUT references."""
    found = files["ablation-k8"]["references"]
    rows = [
        [count, *(number(scores[name]["span"]["tpr_at_1pct_fpr"]["value"]) for name in ("informia", "log_ratio"))]
        for count, scores in found.items()
    ]
    return [["OUT references", "token InfoRMIA", "log-ratio"], *rows]


def population(files: Files) -> Rows:
    """Whole documents: scores with a population of other documents, and without."""
    chosen = {
        "sequence InfoRMIA, 10 population documents": ("informia", 10, None),
        "RMIA, 1,000, γ = 1": ("rmia", 1000, 1.0),
        "RMIA, 1,000, γ = 2": ("rmia", 1000, 2.0),
        "log-ratio of the sequence, no population": ("log_ratio_sequence", 0, None),
        "clipped log-ratio, mean of the tokens, no population": ("log_ratio_clipped", 0, None),
    }

    def row(results: Any, score: str, size: int, gamma: float | None) -> Any:
        wanted = {"score": score, "population": size, "gamma": gamma}
        found = [one for one in results["rows"] if wanted.items() <= one.items()]
        return next(one for one in found if one["statistic"] in (None, "mean") and one["a"] in (None, 1.0))

    rates = ("1", "0.1")
    shown = [(where, f"tpr_at_{rate}pct_fpr") for where in ("per_target", "pooled") for rate in rates]
    head = [
        f"{threshold}: TPR at {rate} % FPR"
        for threshold in ("each target's threshold", "one for all")
        for rate in rates
    ]
    rows = [
        [label, *(number(row(*files.values(), *of)[where][key]["value"]) for where, key in shown)]
        for label, of in chosen.items()
    ]
    return [["", *head], *rows]


# --- benchmarks of unlearning -----------------------------------------------------------------------------------------


def unlearning(files: Files) -> Rows:
    """The default and retraining, beside the model before."""
    (results,) = files.values()
    columns = {
        "before": results["before"],
        "**`default`**": results["methods"]["default"]["token"],
        "**`default`, known spans**": results["known_spans"]["default"],
        "retrained, `placeholder`": results["retrain"]["placeholder"],
        "retrained, `mask`, known spans": results["retrain"]["mask_known"],
    }
    methods = columns.values()

    def row(label: str, bar: str, key: str, form: Callable[[float | None], str] = number) -> list[str]:
        return [label, bar, *(form(method[key]["value"]) for method in methods)]

    floors = [f"floor {rounded(results['floor'][f'{of}_distance']['value'])}" for of in ("secret", "token_oracle")]
    extracted = [", ".join(percent(m[f"extraction_{of}"]["value"]) for of in ("forget", "retain")) for m in methods]
    held = [percent(method.get("selected_secret_share")) for method in methods]
    return [
        ["figure, on the test people's secrets", "bar", *columns],
        row("distance to models that never saw these people, nats", floors[0], "secret_distance", rounded),
        row("the same as a share of the way from its floor (0) to before (1)", "0.25", "secret_distance_ratio"),
        row("distance to models fitted without a loss on secrets, nats", floors[1], "token_oracle_distance", rounded),
        row("the same as a share of the way", "", "token_oracle_distance_ratio"),
        row("other tokens of their documents moved by, nats", "0.05 (known spans)", "other_moved_nats"),
        row("span AUC, by the judges (0.5: as if never seen)", "", "span_auc"),
        row("span TPR at 1 % FPR, by the judges", "0.03", "tpr_at_1pct_fpr"),
        row("over-forgotten spans", "0.03", "over_forgotten"),
        row("retained people's secrets, log-probability above the oracles'", "0.10", "retain_gap_nats"),
        row("loss on people never seen, change", "0.05", "holdout_gap_nats", signed),
        row("loss on prose, change", "0.05", "prose_gap_nats", signed),
        ["extracted: forgotten secrets, retained ones", "0, 95 % of before", *extracted],
        ["secrets' tokens among the selected", "", *held],
    ]


def hard_unlearning(files: Files) -> Rows:
    """The default in the hard world, beside the model before, what the references say, and models that never saw it."""
    (results,) = files.values()
    columns: dict[str, Mapping[str, Any]] = {}
    for epochs, own in results["epochs"].items():
        named = {
            "before": own["before"],
            "**`default`**, blind": own["methods"]["default"]["token"],
            **({"**`default`**": found["default"]} if (found := own.get("recognised_spans")) else {}),
            "**`default`**, known spans": own["known_spans"]["default"],
            "the references' mean": own["matched"],
            "never saw these people": own["oracle"]["document"],
            "fitted without a loss on secrets": own["oracle"]["token"],
        }
        columns |= {f"{name}, {epochs} epochs" if name == "before" else name: one for name, one in named.items()}

    def row(label: str, bar: str, key: str, form: Callable[[float | None], str] = number) -> list[str]:
        return [label, bar, *(form(one[key]["value"] if key in one else None) for one in columns.values())]

    held = [percent(one.get("selected_secret_share")) for one in columns.values()]
    return [
        ["figure, on the test people's secrets", "bar", *columns],
        row("span AUC, by judges kept out of unlearning (0.5: as if never seen)", "0.45 to 0.55", "span_auc"),
        row("span TPR at 1 % FPR, by the judges", "0.03", "tpr_at_1pct_fpr"),
        row("over-forgotten spans", "0.03", "over_forgotten"),
        row(
            "distance to models fitted without a loss on secrets, share of the way",
            "0.25",
            "token_oracle_distance_ratio",
        ),
        row("distance to models that never saw these people, share of the way", "0.25", "secret_distance_ratio"),
        row("extracted: forgotten secrets", "the oracle's", "extraction_forget", percent),
        row("extracted: retained secrets", "as before", "extraction_retain", percent),
        row("other tokens of their documents moved by, nats", "0.10 (known spans)", "other_moved_nats"),
        row("retained people's secrets, log-probability above the oracles'", "0.05 of before", "retain_gap_nats"),
        row("loss on people never seen, change", "0.05", "holdout_gap_nats", signed),
        row("loss on prose, change", "0.05", "prose_gap_nats", signed),
        ["secrets' tokens among the selected", "", *held],
    ]


def objectives(files: Files) -> Rows:
    """Every objective on tokens and on whole documents, the nearest to models that never saw these people first."""
    (results,) = files.values()
    if hard := results.get("epochs"):  # of the hard world, one number of epochs
        (results,) = hard.values()
    found = [(name, scope, row) for name, scopes in results["methods"].items() for scope, row in scopes.items()]
    if hard:
        found += [("default", f"{kind} spans", results[f"{kind}_spans"]["default"]) for kind in ("recognised", "known")]
    found.sort(key=lambda one: one[2]["secret_distance_ratio"]["value"])
    rows = []
    for name, scope, row in found:
        title = f"**`{name}`, {scope}**" if name == "default" else f"`{name}`, {scope}"
        kept = signed(row["retain_gap_nats"]["value"])
        cost = ", ".join(signed(row[key]["value"]) for key in ("holdout_gap_nats", "prose_gap_nats"))
        extracted = ", ".join(percent(row[key]["value"]) for key in ("extraction_forget", "extraction_retain"))
        rate = ", ".join(f"{value:.2g}" for value in sorted(set(row["learning_rate"])))
        figures = [
            number(row[key]["value"]) for key in ("secret_distance_ratio", "tpr_at_1pct_fpr", "other_moved_nats")
        ]
        rows.append([title, *figures, kept, cost, extracted, rate])
    head = ["objective, scope", "distance", "TPR at 1 % FPR", "other tokens moved", "retained", "never seen, prose"]
    return [[*head, "extracted: forgotten, retained", "rate"], *rows]


def equal_forgetting(files: Files) -> Rows:
    """On whole documents: what it costs to bring the secrets as low as the default on tokens does."""
    found = [results["equal_forgetting"] for results in files.values()]
    names = [name for name in found[0]["methods"] if any(reached(one, name) is not None for one in found)]
    rows = [["**`default`, token**", *(signed(one["ours"]) for one in found)]]
    rows += [[f"`{name}`, sequence", *(signed(reached(one, name)) for one in found)] for name in names]
    return [["loss on people never seen, change", "invented people", "LUME"], *rows]


def reached(results: Any, objective: str) -> float | None:
    """The cost of an objective whose tries came as low; None where none did, or none was made."""
    return results["methods"].get(objective, {}).get("holdout_gap_nats")


def speed(files: Files) -> Rows:
    """A step of unlearning against the dense computation with a second copy of the model."""
    titles = {"sparse": "ours", "sparse_checkpointed": "ours, `gradient_checkpointing`", "dense": "dense"}
    rows = []
    for name, title in titles.items():
        variant, ratio = files["speed"]["variants"][name], files["speed"]["ratios"][name]
        seconds, memory = rounded(variant["seconds_per_step"]), number(variant["peak_bytes"] / 2**20, 0)
        ratios = [rounded(ratio["seconds_per_step"]), rounded(ratio["peak_bytes"])]
        rows.append([title, seconds, ratios[0], memory, ratios[1], number(variant["loss"], 5)])
    return [["step", "seconds", "of dense", "peak memory of the process, MiB", "of dense", "loss"], *rows]


def audits(files: Files) -> Rows:
    """What an audit takes beside bare forward passes, one document at a time, and a re-audit beside it."""
    [found] = files.values()
    keys = ("audit_of_bare", "one_by_one_of_audit", "again_of_audit")
    rows = [
        [name, *(rounded(case["ratios"].get(key)) for key in keys)] for name, case in found["audit"]["cases"].items()
    ]
    return [["case", "audit / bare passes", "one by one / audit", "re-audit / audit"], *rows]


def memory(files: Files) -> Rows:
    """Peak memory of audits of more and more documents, whole and by parts."""
    found = files["memory"]["memory"]
    titles = ["documents", "tokens", "audited at once, MiB", f"by parts of {found['part_tokens']:,} tokens, MiB"]
    peaks = [[number(peak / 2**20, 0) for peak in found[way]["peak_bytes"]] for way in ("whole", "parts")]
    rows = [
        [f"{documents:,}", f"{tokens:,}", *both]
        for documents, tokens, *both in zip(found["documents"], found["tokens"], *peaks, strict=True)
    ]
    return [titles, *rows, ["last / first", "", *(rounded(found[way]["ratio"]) for way in ("whole", "parts"))]]


def kept(files: Files) -> Rows:
    """How far `kl` by what was kept of the references lies from that by the references, and what keeping costs."""
    [found] = files.values()
    titles = ["entries kept", "`kl` off, mean", "99 % of tokens", "most", "bytes a token"]
    rows = [
        [
            f"{one['entries']:,}",
            *(f"{one['kl_off'][name]:.5f}" for name in ("mean", "99_percent", "most")),
            f"{one['bytes_a_token']:,.0f}",
            rounded(one["audit_of_plain"]),
            rounded(one["reaudit_of_beside"]),
        ]
        for one in found["kept"]
    ]
    return [[*titles, "audit / one that keeps nothing", "re-audit / one beside the references"], *rows]


def attacks(files: Files) -> Rows:
    """What each attack of a verification got out of the model and of its control."""
    states = {
        "fell": "**fell**",
        "over_forgotten": "**too low**",
        "withstood": "withstood",
        "cannot_tell": "cannot tell",
    }
    rows = [["attack", "model", "control", "gap, 95 % interval", ""]]
    for one in next(iter(files.values()))["findings"]:
        name = " ".join(part for part in (f"`{one['attack']}`", one["part"].replace("_", " ")) if part)
        low, high = one["gap_interval"] or (None, None)
        gap = signed(one["gap"]) + (f" ({signed(low)}, {signed(high)})" if low is not None else "")
        both = one["attack"] in ("difference", "half_way", "twice", "opposite")
        state = "needs both checkpoints" if both else states[one["state"]]
        rows.append([name, rounded(one["value"]), rounded(one["control"]), gap, state])
    return rows


def honest(files: Files) -> Rows:
    """The gap of each attack on a model that never saw the people, seed by seed, and whether it spoke up."""
    seeds = next(iter(files.values()))["seeds"]
    rows = [["attack", *(f"seed {one['seed']}" for one in seeds)]]
    for number, one in enumerate(seeds[0]["findings"]):
        name = " ".join(part for part in (f"`{one['attack']}`", one["part"].replace("_", " ")) if part)
        cells = []
        for seed in seeds:
            found = seed["findings"][number]
            said = "**false alarm** " if found["state"] in ("fell", "over_forgotten") else ""
            low, high = found["gap_interval"]
            cells.append(f"{said}{signed(found['gap'])} ({signed(low)}, {signed(high)})")
        rows.append([name, *cells])
    return rows


def cheats(files: Files) -> Rows:
    """Which checks speak up against models that only look as if they had forgotten, and against honest ones."""
    results = next(iter(files.values()))
    rows = [["model", "what it is", "caught", "by, with the mean gap of an attack; in bold: meant for it"]]
    for name, row in results["candidates"].items():
        gaps: dict[str, list[float]] = {}
        for seed in row["seeds"]:
            for check, gap in seed["caught_by"].items():
                gaps.setdefault(check, []).append(gap if isinstance(gap, float) else math.nan)
        by = []
        for check, found in gaps.items():
            shown = f"**`{check}`**" if check in row["meant"] else f"`{check}`"
            mean = sum(found) / len(found)
            by.append(shown if math.isnan(mean) else f"{shown} {number(mean, 2, sign=True)}")
        caught = sum(bool(seed["caught_by"]) for seed in row["seeds"])
        rows.append([f"`{name}`", row["what"], f"{caught} of {len(row['seeds'])}", ", ".join(by) or "–"])
    return rows
