"""Other words for every question that MiniSQA asks: held back for a third of the test split, never trained on."""

from __future__ import annotations

import re
from functools import lru_cache

#: How a skill asks -> how only the test split asks. A {name} stands for what differs from problem to problem.
WORDINGS = {
    # animals, biology
    "What kind of animal is shown in the picture?": "To which group of animals does this one belong?",
    "What covers the body of the animal in the picture?": "What is the outside of this animal's body made of?",
    "In this food web, which animal eats the {prey}?": "As the arrows show, by whom is the {prey} hunted?",
    "In this food web, which animal does the {hunter} eat?": "As the arrows show, what is the food of the {hunter}?",
    "What is the probability that a plant produced by this cross will have {color} flowers?": (
        "How likely is it that a young plant of these parents blooms in {color}?"
    ),
    "Which of {person}'s traits is inherited?": "What did {person} get through the parents' genes?",
    "Which of {person}'s traits is acquired?": "What did {person} gain only in the course of life?",
    # chemistry
    "Which solution has a higher concentration of {color} particles?": (
        "Where are the {color} particles more concentrated?"
    ),
    "In which sample are the particles those of a {state}?": "One of the three samples is a {state}: which one?",
    "Are the particles in this container those of a solid, a liquid or a gas?": (
        "What state of matter does the container hold?"
    ),
    "Which property do these three objects have in common?": "Choose the word that is true of all three things.",
    "{name} gives {event} as an example in class. What kind of change is it?": (
        "{name} thinks about {event}. Does the type of matter stay or become another?"
    ),
    # earth
    "Which of these fossils is {age}?": "One of the fossils is {age}: name it.",
    "Which rock layer is the {age}?": "Of all the rock in this cliff, what is the {age}?",
    "Which phase of the Moon does this picture from the Northern Hemisphere show?": (
        "Seen from the Northern Hemisphere, the Moon looks like this. What is it called then?"
    ),
    "Does this note describe the weather or the climate of {town}?": (
        "What is written here on {town}: is it about its climate or its weather?"
    ),
    # economics, graphs
    "Who can trade away the {food}?": "Which of the two has the {food} to offer?",
    "Which food can {taker} get from {giver} in a trade?": "{taker} trades with {giver}. What can {taker} receive?",
    "Which of these is a service?": "Find the service among these.",
    "Which of these is a good?": "Find the good among these.",
    "Is there a shortage or a surplus of {things}?": "Compare offer and wish: what is there of {things}?",
    "What will probably happen to the price of {things}?": "Where is the price of {things} likely to go?",
    "The bars show the {things} that each team {done}. How many did the {color} team {do}?": (
        "Each bar tells how many {things} a team {done}. What is the number for {color}?"
    ),
    "The bars show the {things} that each team {done}. Which team {done} the {kind} {things}?": (
        "Each bar tells how many {things} a team {done}. Who has the {kind}?"
    ),
    "The lines show the {measured} in two towns. What happened to it in the {color} town?": (
        "Two towns kept a record of the {measured}. How did the {color} one change?"
    ),
    "The lines show the {measured} in two towns. In which town was it {how}?": (
        "Two towns kept a record of the {measured}. Name the one that had it {how}."
    ),
    # geography
    "What is the name of the highlighted state?": "Which state has been given another color on this map?",
    "Which colored state is farthest {direction}?": (
        "Somebody travels {direction}. Which of the colored states comes last?"
    ),
    "Which continent is highlighted?": "Name the continent that stands out on the map.",
    "Which ocean is highlighted?": "Name the ocean that stands out on the map.",
    "The equator runs across the map. In which hemisphere is the star?": (
        "Of the two halves that the equator makes, which one holds the star?"
    ),
    "The prime meridian runs down the map. In which hemisphere is the star?": (
        "Of the two halves that the prime meridian makes, which one holds the star?"
    ),
    "Which star is {down} of the equator and {across} of the prime meridian?": (
        "What color is the star that lies {across} of the prime meridian and {down} of the equator?"
    ),
    "Which place is in {cell}?": "What stands at {cell} on this map?",
    # grammar
    "What kind of sentence is this? {sentence}": "Read on and name the sentence's kind. {sentence}",
    "Is this sentence simple, compound, or complex? {sentence}": (
        "Look at the clauses: how is the sentence built? {sentence}"
    ),
    "Which tense does the sentence use? {sentence}": "When does this happen? Name the verb's tense. {sentence}",
    # magnets, physics
    "Will these magnets attract or repel each other?": "What do the two magnets do to each other?",
    "In which pair is the magnetic force between the magnets stronger?": (
        "Which magnets act on each other with more force?"
    ),
    "What temperature does this thermometer show?": "Read the scale: how warm is it?",
    "Which sample has the higher temperature?": "One of the gases may be warmer: which?",
    "Which was the {kind} variable in this experiment?": "In what was done here, what served as {kind} variable?",
    # vocabulary
    "Which word would you find on a dictionary page with the guide words {first} - {last}?": (
        "A page of the dictionary goes from {first} to {last}. What else is on it?"
    ),
    "Which word rhymes with {word}?": "Find another word that ends in the sound of {word}.",
    "Which figure of speech is used in this text? {text}": "Name the figure of speech that you find here: {text}",
    'What does the word "{word}" mean in the text?': 'In this text, what is meant by "{word}"?',
}


def reworded(question: str) -> str:
    """The same question in the words of the test split. Raises `ValueError` for one that no entry fits."""
    for pattern, other in _patterns():
        if found := pattern.fullmatch(question):
            return other.format(**found.groupdict())
    raise ValueError(f"minisqa/wordings.py has no other words for {question!r}; add an entry to WORDINGS")


@lru_cache(maxsize=1)
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    return [(_pattern(asked), other) for asked, other in WORDINGS.items()]


def _pattern(asked: str) -> re.Pattern[str]:
    """The template as a regular expression; a name that comes again must be the same again."""
    texts, names = re.split(r"\{\w+\}", asked), re.findall(r"\{(\w+)\}", asked)
    groups = [f"(?P={n})" if n in names[:i] else f"(?P<{n}>.+)" for i, n in enumerate(names)]
    return re.compile("".join(re.escape(text) + group for text, group in zip(texts, [*groups, ""])))
