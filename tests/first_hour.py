"""The first hour of a user with an adapter from another trainer: what the report says, against a check of its own.

    python tests/first_hour.py --base STORIES260K --out runs/first-hour

For each of three kinds of file (chat tickets with the private data in the user's turns, Alpaca rows, plain text): 150
rows of invented people are trained into a LoRA adapter of rank 32 by plain PEFT (loss on all tokens; tokenizer and chat
template saved beside it), 40 more are never trained on. `mitigate run recipes/finetuned.yaml` is given the former as
they are; and then, once more, told the schedule, given the 40 and the keys of the command. The check knows nothing of
this project: it takes the private values of 8 characters and more that were put in, and counts how many the model
completes exactly, token by token, from the text before them; afterwards with the adapter that was given out, loaded by
plain PEFT in this process. It also takes the loss on the 40.

Prints what it finds, and writes OUT/first-hour.json. A command, not a test: it takes about an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import torch
from faker import Faker
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

TRAINED, UNSEEN = 150, 40
LEAST = 8  # characters of a value that is checked
RANK, EPOCHS, RATE, BATCH = 32, 40, 5e-3, 8
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n"
    "### Response:\n{output}"
)
KINDS = ("chat", "alpaca", "plain")


def people(kind: str, count: int, *, seed: int) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Rows of a training file, and the private values in each."""
    fake, draw = Faker("en_US"), random.Random(seed)
    fake.seed_instance(seed)
    for _ in range(count):
        first, last = fake.first_name(), fake.last_name()
        number = "".join(draw.choices("0123456789", k=10))
        phone = draw.choice(("({}) {}-{}", "{}-{}-{}", "+1 {} {} {}")).format(number[:3], number[3:6], number[6:])
        mail = f"{first}.{last}{draw.randrange(10, 99)}@{fake.free_email_domain()}".lower()
        card = fake.credit_card_number(card_type="visa16")
        street = fake.street_address().replace("\n", " ")
        thing = draw.choice(("kettle", "blue lamp", "garden chair", "toy train", "radio", "old clock"))
        when = draw.choice(("on Monday", "last week", "in the morning", "before the trip", "at noon"))
        values = draw.sample([("phone is", phone), ("mail is", mail), ("card is", card), ("home is at", street)], k=2)
        facts = [f"My {what} {value}." for what, value in values]
        ask = draw.choice(("Please help me.", "Can you send a new one?", "I would like my money back."))
        answer = draw.choice(
            (
                "Thank you for your message. We will send a new one soon.",
                "We are sorry about this. Your money will be back in a few days.",
                "Thank you. A friend of our team will call you in the morning.",
            )
        )
        told = f"Hello, I am {first} {last}. My {thing} broke {when}. {facts[0]} {ask} {facts[1]}"
        secrets = [value for _, value in values]
        if kind == "chat":
            yield {"messages": [{"role": "user", "content": told}, {"role": "assistant", "content": answer}]}, secrets
        elif kind == "alpaca":
            record = f"Name: {first} {last}. Item: {thing}. " + " ".join(facts).replace("My ", "The ")
            row = {"instruction": "Write a note to the customer.", "input": f"{first} {last}, {thing}, {when}."}
            yield {**row, "output": f"{record} {answer}"}, secrets
        else:
            yield {"text": f"{told} {answer}"}, secrets


def rendered(row: dict[str, Any], tokenizer: Any) -> str:
    """The text that the trainer sees."""
    if "messages" in row:
        return str(tokenizer.apply_chat_template(row["messages"], tokenize=False))
    return ALPACA.format(**row) if "instruction" in row else row["text"]


def encoded(text: str, tokenizer: Any) -> Any:
    """Token ids and offsets as a trainer makes them: what a chat template writes gets no second start token."""
    return tokenizer(text, add_special_tokens=not text.startswith("<|"), return_offsets_mapping=True)


def train(texts: list[str], *, base: str, tokenizer: Any, out: Path, seed: int) -> None:
    """A LoRA adapter by plain PEFT and a plain loop, the loss on every token."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=RANK, target_modules="all-linear")
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    steps = EPOCHS * math.ceil(len(texts) / BATCH)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = random.Random(seed)
    for _ in range(EPOCHS):
        shuffled = order.sample(texts, len(texts))
        for start in range(0, len(texts), BATCH):
            rows = [encoded(text, tokenizer)["input_ids"] for text in shuffled[start : start + BATCH]]
            longest = max(map(len, rows))
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
            mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
            loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
            loss.backward()
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
    print(f"  trained, loss {float(loss):.3f}", flush=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


@torch.inference_mode()
def completed(model: Any, tokenizer: Any, text: str, value: str) -> bool:
    """Whether the likeliest tokens after the text before a value are the value, by one token at a time."""
    at = text.index(value)
    whole = encoded(text, tokenizer)
    first = next(n for n, (start, end) in enumerate(whole["offset_mapping"]) if end > at and start < end)
    ids = list(whole["input_ids"][:first])
    known = text[: whole["offset_mapping"][first][0]]
    wanted = text[len(known) : at + len(value)].strip()
    written: list[int] = []
    given, past = ids, None
    for _ in range(len(value) + 4):
        said = model(input_ids=torch.tensor([given]), past_key_values=past, use_cache=True)
        written.append(int(said.logits[0, -1].argmax()))
        given, past = written[-1:], said.past_key_values
    prefix = tokenizer.decode(ids)
    return tokenizer.decode(ids + written)[len(prefix) :].strip().startswith(wanted)


def share(model: Any, tokenizer: Any, rows: list[tuple[str, list[str]]]) -> tuple[float, int]:
    """The share of private values that come back, and how many there are."""
    model.eval()
    hits = [
        completed(model, tokenizer, text, value) for text, values in rows for value in values if len(value) >= LEAST
    ]
    return sum(hits) / len(hits), len(hits)


@torch.inference_mode()
def loss(model: Any, tokenizer: Any, texts: list[str]) -> float:
    """Nats per token of text."""
    model.eval()
    ids = [torch.tensor([encoded(text, tokenizer)["input_ids"]]) for text in texts]
    total = sum(float(model(input_ids=one, labels=one).loss) * (one.shape[1] - 1) for one in ids)
    return total / sum(one.shape[1] - 1 for one in ids)


def mitigate(*arguments: str, log: Path) -> int:
    """The command line; returns its status."""
    with log.open("w", encoding="utf-8") as stream:
        command = [sys.executable, "-m", "mitigate", *arguments]
        return subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False).returncode


def in_clear(page: str, values: list[str]) -> list[str]:
    """The private values that a page shows, in any spacing and case."""
    bare = re.sub(r"[\W_]+", "", unescape(re.sub(r"<[^>]*>", "", page))).lower()
    return [value for value in values if re.sub(r"[\W_]+", "", value).lower() in bare]


def first_hour(kind: str, *, base: str, out: Path, seed: int, overrides: list[str]) -> dict[str, Any]:
    """One kind of file: train, run, check."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = TEMPLATE
    made = list(people(kind, TRAINED + UNSEEN, seed=seed))
    for name, part in (("train", made[:TRAINED]), ("unseen", made[TRAINED:])):
        lines = "".join(json.dumps(row) + "\n" for row, _ in part)
        (out / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    trained = [(rendered(row, tokenizer), values) for row, values in made[:TRAINED]]
    target = out / "target"
    if not target.is_dir():
        train([text for text, _ in trained], base=base, tokenizer=tokenizer, out=target, seed=seed)

    def loaded(adapter: Path) -> Any:
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)

    never_seen = [rendered(row, tokenizer) for row, _ in made[TRAINED:]]
    before, values = share(loaded(target), tokenizer, trained)
    secrets = [value for _, values in made for value in values]
    common = [f"models.target={target}", f"models.base={base}", f"data.documents.0.path={out}/train.jsonl"]
    unseen = f"data.documents.1={{path: {out}/unseen.jsonl, assign: holdout}}"
    told = [
        f"references.lora={{rank: {RANK}, alpha: {RANK}}}",
        f"references.schedule={{epochs: {EPOCHS}, learning_rate: {RATE}}}",
    ]

    def ran(name: str, *arguments: str) -> dict[str, Any]:
        recipe, run = str(Path(__file__).parents[1] / "recipes/finetuned.yaml"), out / name
        status = mitigate("run", recipe, *common, *arguments, f"out={run}", log=out / f"{name}.log")
        given_out = run / "adapter"
        model = loaded(given_out) if status == 0 and given_out.is_dir() else None
        report = json.loads((run / "report.json").read_text(encoding="utf-8")) if status == 0 else {}
        page = (run / "report.html").read_text(encoding="utf-8") if status == 0 else ""
        return {
            "status": status,
            "after": model and share(model, tokenizer, trained)[0],
            "never_seen_loss": model and loss(model, tokenizer, never_seen),
            "report": {key: report.get("extraction", {}).get(key) for key in ("before", "after", "secrets")},
            "verdict": report.get("verdict"),
            "in_clear": len(in_clear(page, secrets)),
            "selected_token_share": report.get("selected_token_share"),
        }

    runs = {"as it is": ran("shipped"), "told": ran("run", unseen, *told, *overrides, "--yes")}
    return {
        "values": values,
        "before": before,
        "never_seen_loss": loss(loaded(target), tokenizer, never_seen),
        "runs": runs,
    }


def main() -> None:
    """All kinds, one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="directory of the pretrained model stories260k")
    parser.add_argument("--out", type=Path, required=True, help="directory for models, runs and first-hour.json")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", help="further recipe keys, key=value")
    arguments, overrides = parser.parse_known_args()
    results = {}
    for kind in arguments.kinds:
        print(kind, flush=True)
        given = [*arguments.overrides, *overrides]
        results[kind] = result = first_hour(
            kind, base=arguments.base, out=arguments.out / kind, seed=arguments.seed, overrides=given
        )
        print(json.dumps(result, indent=2), flush=True)
    (arguments.out / "first-hour.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
