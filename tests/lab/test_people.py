"""Invented people: equal in every process, planted exactly as often as told, and told from their twins by nothing."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from random import Random

import numpy as np
import pytest

from mitigate.documents import Document, read_documents
from mitigate.documents.written import write_jsonl
from mitigate.errors import MitigateError
from mitigate.lab.people import Person, invent_people, luhn
from mitigate.lab.planting import Planting, plant
from mitigate.lab.registers import PROSE, REGISTERS, SECRETS, WORDS
from mitigate.lab.writing import general_text, write_document

EVERY_WORDING = [(name, number) for name, style in REGISTERS.items() for number in range(len(style.templates))]


@pytest.fixture(scope="module")
def planting() -> Planting:
    return plant(seed=7)


def masked(document: Document, person: Person) -> str:
    """The document's text without the person's secrets and name."""
    text = document.text
    for span in sorted(document.spans, key=lambda span: -span.start):
        text = text[: span.start] + "#" + text[span.end :]
    return text.replace(person.name, "#").replace(person.first, "#")


def digest(documents: Iterable[Document]) -> str:
    return hashlib.sha256("\n".join(map(repr, documents)).encode()).hexdigest()


def everything(seed: int) -> str:
    return digest([*plant(seed=seed, people_per_count={0: 2, 3: 2}).documents, *general_text(20, seed=seed)])


def test_equal_seeds_give_equal_documents_in_a_process_with_another_hash_seed() -> None:
    here = Path(__file__)
    path = os.pathsep.join(filter(None, [str(here.parent), str(here.parents[2]), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", "from test_people import everything; print(everything(3))"]
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": path}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == everything(3)


def test_other_seeds_give_other_documents() -> None:
    assert everything(3) != everything(4)


def test_inventing_people_leaves_the_global_generators_alone() -> None:
    import random

    from faker import Faker

    random.seed(5)
    Faker.seed(5)
    expected = random.random(), Faker("en_US").name()
    random.seed(5)
    Faker.seed(5)
    invent_people(3, seed=1)
    assert (random.random(), Faker("en_US").name()) == expected


def test_names_and_secrets_are_never_given_twice() -> None:
    strings = [string for one in invent_people(300, seed=1) for string in (one.name, *one.secrets.values())]
    assert len(set(strings)) == len(strings) == 300 * (1 + len(SECRETS))


def test_secrets_lie_in_ranges_that_nobody_is_issued() -> None:
    for person in invent_people(200, seed=2):
        area, group, serial = person.secrets["ssn"].split("-")
        assert 900 <= int(area) <= 999
        assert 1 <= int(group) <= 49
        assert int(serial) > 0
        card = person.secrets["card"].replace(" ", "")
        assert re.fullmatch("99[0-9]{14}", card)
        assert luhn(card) % 10 == 0
        assert re.fullmatch(r"\(?[2-9]9\d\)?[-. ][2-9]\d\d[-.]\d{4}", person.secrets["phone"])
        assert re.fullmatch(r"[a-z._]+\d{4}@([a-z]+\.(example|test)|example\.(com|net|org))", person.secrets["email"])
        assert re.fullmatch("sk_test_[A-Za-z0-9]{20}", person.secrets["api_key"])
        assert re.fullmatch(r"[A-Z]{2}-\d{4}-\d{4}", person.secrets["account"])
        assert re.fullmatch(r"\d{4} [^\n]+, [^\n]+, [A-Z]{2} \d{5}", person.secrets["address"])


def test_luhn_agrees_with_a_published_test_card() -> None:
    assert luhn("4242424242424242") % 10 == 0
    assert luhn("4242424242424241") % 10 == 9


@pytest.mark.parametrize(("register", "template"), EVERY_WORDING)
def test_every_wording_holds_any_labels_once_in_a_readable_length(register: str, template: int) -> None:
    for number, person in enumerate(invent_people(20, seed=f"{register}{template}")):
        rng = Random(number)
        labels = rng.sample(SECRETS, 2 + number % 3)
        document = write_document(person, register=register, template=template, rng=rng, id="d", labels=labels)
        assert sorted(span.label for span in document.spans) == sorted(labels)
        for span in document.spans:
            assert document.text[span.start : span.end] == person.secrets[span.label]
            assert document.text.count(person.secrets[span.label]) == 1
        assert document.text.index(person.name) < min(span.start for span in document.spans)
        assert 200 <= len(document.text) <= 450
        assert not re.search(r"[{}]|  \S.*  |\n\n| \n| $|\.\.", document.text)
        assert document.group == person.id


def test_every_register_has_many_templates_and_phrases_for_every_secret() -> None:
    assert len(REGISTERS) == 5
    for style in REGISTERS.values():
        assert len(set(style.templates)) >= 8
        assert set(style.clauses) == set(SECRETS)
        assert min(len(set(clauses)) for clauses in style.clauses.values()) >= 3
    assert all(" " not in slot for slot in WORDS)
    assert len(PROSE) >= 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"register": "poem"}, "no register 'poem'; there are bio, email"),
        ({"template": 99}, "no template 99 in bio; it has 0 to"),
        ({"labels": ["phone", "phone"]}, "labels are phone, phone; give 1 to 4 different ones of phone, email"),
        ({"labels": []}, "labels are empty"),
        ({"labels": ["shoe size"]}, "labels are shoe size"),
    ],
)
def test_a_document_that_cannot_be_written_is_refused_by_name(change: dict, message: str) -> None:
    (person,) = invent_people(1, seed=1)
    wish = {"register": "bio", "template": 0, "rng": Random(0), "id": "d", **change}
    with pytest.raises(MitigateError, match=message):
        write_document(person, **wish)


def test_secrets_are_in_exactly_as_many_training_documents_as_told(planting: Planting) -> None:
    trained = [document for document in planting.documents if document.set in ("forget", "retain")]
    held_out = [document for document in planting.documents if document.set == "holdout"]
    by_count = Counter(planting.copies[person] for person in planting.twins)
    assert by_count == {1: 12, 2: 12, 4: 12, 8: 12, 16: 12}
    assert len(planting.people) == 12 + 2 * 60
    for person in planting.people:
        own = [document for document in planting.documents if document.group == person.id]
        labels = {span.label for span in own[0].spans}
        assert 2 <= len(labels) <= 4
        for label, secret in person.secrets.items():
            in_training = sum(document.text.count(secret) for document in trained)
            in_holdout = sum(document.text.count(secret) for document in held_out)
            planted = planting.copies[person.id]
            assert in_training == (planted if label in labels else 0)
            assert in_holdout == (0 if planted or label not in labels else 1)
        assert len({document.set for document in own}) == 1
        assert len({document.text for document in own}) == len(own) == max(1, planting.copies[person.id])


def test_copies_of_one_person_differ_in_wording(planting: Planting) -> None:
    for person in planting.people:
        own = [document for document in planting.documents if document.group == person.id]
        assert len({masked(document, person) for document in own}) == len(own)


def test_a_third_of_each_counts_people_is_to_be_forgotten(planting: Planting) -> None:
    sets = {document.group: document.set for document in planting.documents}
    forgotten = Counter(planting.copies[person] for person in planting.twins if sets[person] == "forget")
    assert forgotten == {1: 4, 2: 4, 4: 4, 8: 4, 16: 4}
    few = plant(seed=1, people_per_count={1: 1, 2: 1, 4: 1, 8: 1, 16: 1, 32: 1})
    assert len({document.group for document in few.documents if document.set == "forget"}) == 2


def test_a_person_planted_more_often_than_there_are_wordings_gets_that_many_documents() -> None:
    many = plant(seed=1, people_per_count={len(EVERY_WORDING) + 5: 1}, forget_share=1)
    assert Counter(document.set for document in many.documents) == {"forget": len(EVERY_WORDING) + 5, "holdout": 1}


def test_a_twins_document_differs_from_the_first_of_its_members_in_name_and_secrets_only(planting: Planting) -> None:
    people = {person.id: person for person in planting.people}
    documents = {document.id: document for document in planting.documents}
    for member, twin in planting.twins.items():
        first, shadow = documents[f"{member}-00"], documents[f"{twin}-00"]
        assert masked(first, people[member]) == masked(shadow, people[twin])
        assert shadow.set == "holdout"
        assert not set(people[member].secrets.values()) & set(people[twin].secrets.values())


def test_a_coin_decides_which_of_a_pair_is_planted() -> None:
    planted = plant(seed=11, people_per_count={1: 200})
    first_of_pair = sum(member < twin for member, twin in planted.twins.items())
    assert 70 <= first_of_pair <= 130  # more than 4 standard deviations


@pytest.mark.parametrize("counts", [{1: 250}, {1: 80, 4: 60, 16: 20}])
def test_a_bag_of_words_cannot_tell_members_from_twins(counts: dict[int, int]) -> None:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    planted = plant(seed=5, people_per_count=counts)
    people = {person.id: person for person in planted.people}
    pair = {person: number for number, couple in enumerate(planted.twins.items()) for person in couple}
    texts = [masked(document, people[document.group]) for document in planted.documents]
    member = np.array([document.set != "holdout" for document in planted.documents])
    pairs = [pair[document.group] for document in planted.documents]
    classifier = make_pipeline(CountVectorizer(), LogisticRegression(C=0.1, max_iter=500, class_weight="balanced"))
    guess = cross_val_predict(classifier, texts, member, groups=pairs, cv=GroupKFold(5), method="decision_function")
    above = (guess[member][:, None] > guess[~member]).mean() + 0.5 * (guess[member][:, None] == guess[~member]).mean()
    assert 0.35 <= above <= 0.65


def test_the_place_of_a_document_and_its_length_do_not_tell_members_either() -> None:
    planted = plant(seed=6, people_per_count={1: 250})
    member = np.array([document.set != "holdout" for document in planted.documents])
    for signal in (np.arange(len(member)), np.array([len(document.text) for document in planted.documents])):
        above = (signal[member][:, None] > signal[~member]).mean() + 0.5 * (
            signal[member][:, None] == signal[~member]
        ).mean()
        assert 0.4 <= above <= 0.6


def test_general_text_knows_the_formats_and_nobody_who_is_planted(planting: Planting) -> None:
    documents = general_text(600, seed=7)
    assert len({document.id for document in documents}) == 600
    assert all(document.set is None and 100 <= len(document.text) <= 450 for document in documents)
    assert all(document.text[span.start : span.end] for document in documents for span in document.spans)
    labels = Counter(span.label for document in documents for span in document.spans)
    assert min(labels[label] for label in SECRETS) > 50
    assert 180 <= sum(not document.spans for document in documents) <= 300
    text = "\n".join(document.text for document in documents)
    for person in planting.people:
        assert not any(string in text for string in (person.name, *person.secrets.values()))


def test_throwaway_people_and_planted_people_stay_apart_whatever_the_seeds() -> None:
    throwaway = {
        document.text[span.start : span.end] for document in general_text(500, seed=1) for span in document.spans
    }
    invented = {
        secret for seed in range(5) for person in invent_people(100, seed=seed) for secret in person.secrets.values()
    }
    assert not throwaway & invented
    assert {hashlib.sha256(secret.encode()).digest()[0] % 2 for secret in throwaway} == {1}
    assert {hashlib.sha256(secret.encode()).digest()[0] % 2 for secret in invented} == {0}


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"people_per_count": {-1: 3}}, "people_per_count has -1: 3; give numbers of 0 or more"),
        ({"people_per_count": {1: -3}}, "people_per_count has 1: -3"),
        ({"forget_share": 1.5}, "forget_share is 1.5; give a share from 0 to 1"),
    ],
)
def test_a_planting_that_cannot_be_is_refused_by_key(wish: dict, message: str) -> None:
    with pytest.raises(MitigateError, match=message):
        plant(seed=0, **wish)


def test_documents_read_back_from_json_lines_are_equal(tmp_path: Path, planting: Planting) -> None:
    path = tmp_path / "people.jsonl"
    write_jsonl(planting.documents, path)
    assert read_documents(path).items == planting.documents.items
    assert path.stat().st_mode & 0o777 == 0o600
    other = tmp_path / "general.jsonl"
    write_jsonl(general_text(50, seed=1), other)
    assert list(read_documents(other)) == general_text(50, seed=1)
