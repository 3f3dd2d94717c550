"""Language science, part one: sentences and tenses. All text, built from names, actions and places."""

from __future__ import annotations

import random

from mmlora.minisqa.core import Draft, skill
from mmlora.minisqa.words import ACTIONS, NAMES, PLACES, capital

SENTENCES = {
    "subject": "language science",
    "topic": "writing-strategies",
    "category": "Sentences, fragments, and run-ons",
}


def _clause(rng: random.Random, who: str, action: tuple[str, str, str, str], form: int = 2) -> str:
    return f"{who} {action[form]} {action[3]}"


def _two(rng: random.Random):
    """Two people and two actions."""
    return rng.sample(NAMES, 2), rng.sample(ACTIONS, 2)


KINDS = {
    "declarative": "The sentence states a fact and ends with a period",
    "interrogative": "The sentence asks something and ends with a question mark",
    "imperative": "The sentence gives an order and starts with a verb",
    "exclamatory": "The sentence shows strong feeling and ends with an exclamation point",
}


def _sentence_of_kind(rng: random.Random, kind: str) -> str:
    who, action, place = rng.choice(NAMES), rng.choice(ACTIONS), rng.choice(PLACES)
    base, third, past, thing = action
    if kind == "declarative":
        return f"{who} {rng.choice((third, past, 'will ' + base))} {thing} {place}."
    if kind == "interrogative":
        return f"{rng.choice(('Did', 'Will', 'Can'))} {who} {base} {thing} {place}?"
    if kind == "imperative":
        start, end = rng.choice((("", ""), ("please ", ""), ("", ", " + who)))
        return capital(f"{start}{base} {thing} {place}{end}.")
    return rng.choice(
        (
            f"How well {who} {past} {thing}!",
            f"Wow, {who} {past} {thing} {place}!",
            f"What a day, {who} {past} {thing} {place}!",
        )
    )


@skill(
    "Is the sentence declarative, interrogative, imperative, or exclamatory?",
    **SENTENCES,
    grades=(2, 6),
    weight=1.8,
    lecture="""A declarative sentence makes a statement and ends with a period. An interrogative sentence asks a
    question. An imperative sentence makes a request or a demand, and its subject is often left out. An exclamatory
    sentence is like a statement, but shows surprise or strong feeling, and it ends with an exclamation point.""",
)
def kind_of_sentence(rng: random.Random) -> Draft:
    kinds = tuple(KINDS)
    answer = rng.randrange(4)
    sentence = _sentence_of_kind(rng, kinds[answer])
    return Draft(
        f"What kind of sentence is this? {sentence}",
        kinds,
        answer,
        f"{KINDS[kinds[answer]]}, so it is {kinds[answer]}.",
    )


@skill(
    "Is the sentence simple, compound, or complex?",
    **SENTENCES,
    grades=(6, 10),
    weight=1.8,
    lecture="""A simple sentence has one clause. A compound sentence joins two independent clauses with a
    conjunction such as and, but, or, so. A complex sentence has an independent clause and a dependent clause, which
    begins with a word such as because, when, although or after.""",
)
def structure_of_sentence(rng: random.Random) -> Draft:
    (a, b), (x, y) = _two(rng)
    place = rng.choice(PLACES)
    answer = rng.randrange(3)
    first, second = _clause(rng, a, x), _clause(rng, b, y)
    if answer == 0:
        who = rng.choice((a, f"{a} and {b}"))
        sentence = rng.choice((f"{_clause(rng, who, x)} {place}.", f"{capital(place)}, {_clause(rng, who, x)}."))
        why = f'There is only one clause, with the verb "{x[2]}"'
    elif answer == 1:
        word = rng.choice(("and", "but", "so"))
        sentence = f"{first}, {word} {second}."
        why = f'The word "{word}" joins two independent clauses'
    else:
        word = rng.choice(("because", "when", "although", "after", "before", "while"))
        sentence = rng.choice((f"{capital(word)} {first}, {second}.", f"{first} {word} {second}."))
        why = f'The word "{word}" begins a dependent clause'
    choices = ("simple", "compound", "complex")
    return Draft(
        f"Is this sentence simple, compound, or complex? {sentence}",
        choices,
        answer,
        f"{why}, so the sentence is {choices[answer]}.",
    )


@skill(
    "Identify the verb tense",
    subject="language science",
    topic="verbs",
    category="Verb tense",
    grades=(2, 5),
    weight=1.8,
    lecture="""Present tense verbs tell you about something that is happening now. Past tense verbs tell you about
    something that has already happened; many end in -ed. Future tense verbs tell you about something that is going
    to happen and use will.""",
)
def verb_tense(rng: random.Random) -> Draft:
    who, (base, third, past, thing), place = rng.choice(NAMES), rng.choice(ACTIONS), rng.choice(PLACES)
    choices = ("past tense", "present tense", "future tense")
    verbs = (past, third, f"will {base}")
    facts = ("tells what has already happened", "tells what happens now", "tells what is going to happen")
    answer = rng.randrange(3)
    return Draft(
        f"Which tense does the sentence use? {who} {verbs[answer]} {thing} {place}.",
        choices,
        answer,
        f'The verb "{verbs[answer]}" {facts[answer]}, so the sentence is in the {choices[answer]}.',
    )
