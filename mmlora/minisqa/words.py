"""Names and actions that several text skills build their sentences from."""

from __future__ import annotations

from collections.abc import Sequence

NAMES = (
    "Ana", "Ben", "Carla", "Dale", "Emma", "Felix", "Grace", "Hugo", "Irene", "Jack", "Kira", "Liam", "Mona", "Noah",
    "Olga", "Paul", "Quinn", "Rosa", "Sam", "Tina", "Uma", "Victor", "Wendy", "Yusuf", "Zoe", "Aki", "Brenda", "Cody",
    "Diego", "Farah", "Gavin", "Hana", "Ivan", "Julia", "Leo", "Maya", "Nina", "Omar", "Priya", "Tom",
)  # fmt: skip
#: What somebody can do: base form, third person, past, and the rest of the phrase.
ACTIONS = (
    ("paint", "paints", "painted", "the fence"), ("wash", "washes", "washed", "the car"),
    ("bake", "bakes", "baked", "a cake"), ("study", "studies", "studied", "a long book"),
    ("plant", "plants", "planted", "a small tree"), ("fix", "fixes", "fixed", "the old bike"),
    ("kick", "kicks", "kicked", "the ball"), ("open", "opens", "opened", "the window"),
    ("clean", "cleans", "cleaned", "the kitchen"), ("visit", "visits", "visited", "a museum"),
    ("water", "waters", "watered", "the roses"), ("cook", "cooks", "cooked", "some soup"),
    ("carry", "carries", "carried", "the boxes"), ("climb", "climbs", "climbed", "the hill"),
    ("play", "plays", "played", "a song"), ("help", "helps", "helped", "a neighbor"),
    ("walk", "walks", "walked", "the dog"), ("pack", "packs", "packed", "a lunch"),
    ("mail", "mails", "mailed", "a letter"), ("pick", "picks", "picked", "some apples"),
    ("feed", "feeds", "fed", "the ducks"), ("sweep", "sweeps", "swept", "the floor"),
    ("draw", "draws", "drew", "a map"), ("build", "builds", "built", "a birdhouse"),
    ("write", "writes", "wrote", "a poem"), ("buy", "buys", "bought", "a new hat"),
)  # fmt: skip
PLACES = (
    "at school", "in the park", "near the lake", "at home", "in the village", "behind the house", "by the river",
    "at camp", "on the farm", "with a friend", "for the team", "before lunch", "after the rain", "in the morning",
)  # fmt: skip


def capital(text: str) -> str:
    """`text` with its first letter as a capital and the rest unchanged."""
    return text[:1].upper() + text[1:]


def spoken(name: str) -> str:
    """An icon's file name as it is said: "ferris_wheel" is "ferris wheel"."""
    return name.replace("_", " ")


def with_article(noun: str) -> str:
    """`noun` after "a" or "an", by its first letter."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def listing(words: Sequence[str]) -> str:
    """One or more words joined with commas and a last "and"."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
