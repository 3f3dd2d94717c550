"""Other words for every question that MiniSQA asks: some for training, and some held back for a third of the test split."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple


class Words(NamedTuple):
    """The same question otherwise; the test's sentences are in no other split."""

    test: str
    train: tuple[str, ...] = ()  # none for what is never trained


#: How a skill asks -> how else. A {name} stands for what differs from problem to problem.
WORDINGS = {
    # animals, biology
    "What kind of animal is shown in the picture?": Words(
        "To which group of animals does this one belong?",
        ("Look at the picture: what class of animal do you see?", "Say what kind of animal is drawn here."),
    ),
    "What covers the body of the animal in the picture?": Words("What is the outside of this animal's body made of?"),
    "In this food web, which animal eats the {prey}?": Words(
        "As the arrows show, by whom is the {prey} hunted?",
        (
            "Arrows lead from the eaten to the eater. Who eats the {prey}?",
            "Which animal feeds on the {prey} in this picture?",
        ),
    ),
    "In this food web, which animal does the {hunter} eat?": Words(
        "As the arrows show, what is the food of the {hunter}?",
        (
            "Arrows lead from the eaten to the eater. Whom does the {hunter} eat?",
            "On which animal does the {hunter} feed in this picture?",
        ),
    ),
    "What is the probability that a plant produced by this cross will have {color} flowers?": Words(
        "How likely is it that a young plant of these parents blooms in {color}?",
        (
            "Look at the square. With what probability will an offspring have {color} flowers?",
            "What share of the plants from this cross should have {color} flowers?",
        ),
    ),
    "Which of {person}'s traits is inherited?": Words(
        "What did {person} get through the parents' genes?",
        (
            "Pick the trait that {person} was born with.",
            "One of these comes from {person}'s mother and father. Which one?",
        ),
    ),
    "Which of {person}'s traits is acquired?": Words(
        "What did {person} gain only in the course of life?",
        (
            "Pick the trait that {person} was not born with.",
            "One of these does not come from {person}'s mother and father. Which one?",
        ),
    ),
    # chemistry
    "Which solution has a higher concentration of {color} particles?": Words(
        "Where are the {color} particles more concentrated?",
        (
            "Two beakers hold {color} particles in water. Which has the higher concentration?",
            "Compare the beakers: in which do the {color} particles lie closer together?",
        ),
    ),
    "In which sample are the particles those of a {state}?": Words(
        "One of the three samples is a {state}: which one?",
        ("Look at the particles. Which sample shows a {state}?", "Pick the sample that is a {state}."),
    ),
    "Are the particles in this container those of a solid, a liquid or a gas?": Words(
        "What state of matter does the container hold?",
        (
            "Solid, liquid or gas: what do these particles form?",
            "Look at how the particles lie. What is in this container?",
        ),
    ),
    "Which property do these three objects have in common?": Words(
        "Choose the word that is true of all three things.",
        ("In what are these three objects alike?", "Look at the objects. Which property do they share?"),
    ),
    "{name} gives {event} as an example in class. What kind of change is it?": Words(
        "{name} thinks about {event}. Does the type of matter stay or become another?",
        (
            "Is {event} a physical change or a chemical change? {name} asks.",
            "Say what kind of change {name} describes: {event}.",
        ),
    ),
    # earth
    "Which of these fossils is {age}?": Words(
        "One of the fossils is {age}: name it.",
        ("Look at the layers and their fossils. Which fossil is {age}?", "Which fossil shown here is {age}?"),
    ),
    "Which rock layer is the {age}?": Words(
        "Of all the rock in this cliff, what is the {age}?",
        ("Look at the layers: point out the {age} one.", "The layers formed one after another. Which is the {age}?"),
    ),
    "Which phase of the Moon does this picture from the Northern Hemisphere show?": Words(
        "Seen from the Northern Hemisphere, the Moon looks like this. What is it called then?",
        (
            "Name the phase of the Moon. (You stand in the Northern Hemisphere.)",
            "What phase is the Moon in here, for someone in the Northern Hemisphere?",
        ),
    ),
    "Does this note describe the weather or the climate of {town}?": Words(
        "What is written here on {town}: is it about its climate or its weather?",
        (
            "Weather or climate of {town}: what is the note about?",
            "Read the note about {town}. Does it tell of weather or of climate?",
        ),
    ),
    # economics, graphs
    "Who can trade away the {food}?": Words(
        "Which of the two has the {food} to offer?",
        ("On whose tray is the {food}?", "Which person could give the {food} to the other?"),
    ),
    "Which food can {taker} get from {giver} in a trade?": Words(
        "{taker} trades with {giver}. What can {taker} receive?",
        ("Which food might {giver} hand to {taker} in a trade?", "What can {taker} be given by {giver}?"),
    ),
    "Which of these is a service?": Words(
        "Find the service among these.",
        ("Which one is a service, and no good?", "Only one of these is a service. Which?"),
    ),
    "Which of these is a good?": Words(
        "Find the good among these.",
        ("Which one is a good, and no service?", "Only one of these is a good. Which?"),
    ),
    "Is there a shortage or a surplus of {things}?": Words(
        "Compare offer and wish: what is there of {things}?",
        (
            "Shortage or surplus of {things}: what do the numbers show?",
            "Do buyers find too few or too many {things} here?",
        ),
    ),
    "What will probably happen to the price of {things}?": Words(
        "Where is the price of {things} likely to go?",
        ("How will the price of {things} most likely change?", "Say what you expect of the price of {things}."),
    ),
    "The bars show the {things} that each team {done}. How many did the {color} team {do}?": Words(
        "Each bar tells how many {things} a team {done}. What is the number for {color}?",
        (
            "Every team {done} {things} and has a bar here. How high does {color} reach?",
            "How many {things} did the {color} team {do}? Each bar shows what a team {done}.",
        ),
    ),
    "The bars show the {things} that each team {done}. Which team {done} the {kind} {things}?": Words(
        "Each bar tells how many {things} a team {done}. Who has the {kind}?",
        (
            "Every team {done} {things} and has a bar here. Name the one with the {kind}.",
            "Which team has {done} the {kind} {things}, by the bars?",
        ),
    ),
    "The lines show the {measured} in two towns. What happened to it in the {color} town?": Words(
        "Two towns kept a record of the {measured}. How did the {color} one change?",
        (
            "Follow the {color} line, which is the {measured} in a town. Did it rise, fall or stay?",
            "How did the {measured} in the {color} town develop from left to right?",
        ),
    ),
    "The lines show the {measured} in two towns. In which town was it {how}?": Words(
        "Two towns kept a record of the {measured}. Name the one that had it {how}.",
        (
            "Each line is the {measured} in a town. Say in which it was {how}.",
            "Compare the lines for the {measured}: which was {how}?",
        ),
    ),
    # geography
    "What is the name of the highlighted state?": Words(
        "Which state has been given another color on this map?",
        ("Name the highlighted state.", "One state on the map is highlighted. Which is it?"),
    ),
    "Which colored state is farthest {direction}?": Words(
        "Somebody travels {direction}. Which of the colored states comes last?",
        (
            "Look at the colored states. Which lies farthest {direction}?",
            "Of the colored states, name the one farthest {direction}.",
        ),
    ),
    "Which continent is highlighted?": Words(
        "Name the continent that stands out on the map.",
        ("Look at the map. What continent is marked?", "One continent on the map has a color of its own. Which is it?"),
    ),
    "Which ocean is highlighted?": Words(
        "Name the ocean that stands out on the map.",
        ("Look at the map. What ocean is marked?", "One ocean on the map has a color of its own. Which is it?"),
    ),
    "The equator runs across the map. In which hemisphere is the star?": Words(
        "Of the two halves that the equator makes, which one holds the star?",
        (
            "Northern or Southern: in which hemisphere is the star? The line is the equator.",
            "Look where the star is, above or below the equator. Name its hemisphere.",
        ),
    ),
    "The prime meridian runs down the map. In which hemisphere is the star?": Words(
        "Of the two halves that the prime meridian makes, which one holds the star?",
        (
            "Western or Eastern: in which hemisphere is the star? The line is the prime meridian.",
            "Look where the star is, left or right of the prime meridian. Name its hemisphere.",
        ),
    ),
    "Which star is {down} of the equator and {across} of the prime meridian?": Words(
        "What color is the star that lies {across} of the prime meridian and {down} of the equator?",
        (
            "Equator and prime meridian cross on the map. Look {down} and {across}: which star is there?",
            "The map shows several stars. Which is to the {down} of the equator, to the {across} of the prime meridian?",
        ),
    ),
    "Which place is in {cell}?": Words("What stands at {cell} on this map?"),
    # grammar
    "What kind of sentence is this? {sentence}": Words(
        "Read on and name the sentence's kind. {sentence}",
        (
            "Does this sentence tell, ask, command or call out? {sentence}",
            "{sentence} Say what kind of sentence this is.",
        ),
    ),
    "Is this sentence simple, compound, or complex? {sentence}": Words(
        "Look at the clauses: how is the sentence built? {sentence}",
        (
            "{sentence} Is that a simple, a compound or a complex sentence?",
            "Simple, compound or complex: what is this sentence? {sentence}",
        ),
    ),
    "Which tense does the sentence use? {sentence}": Words(
        "When does this happen? Name the verb's tense. {sentence}",
        ("Past, present or future? {sentence}", "{sentence} Which tense is that?"),
    ),
    # magnets, physics
    "Will these magnets attract or repel each other?": Words(
        "What do the two magnets do to each other?",
        (
            "Attract or repel: how will these magnets act?",
            "Look at the poles that face each other. Do the magnets attract or repel?",
        ),
    ),
    "In which pair is the magnetic force between the magnets stronger?": Words(
        "Which magnets act on each other with more force?",
        (
            "Compare the two pairs: which has the stronger magnetic force?",
            "Which pair of magnets pulls or pushes harder?",
        ),
    ),
    "What temperature does this thermometer show?": Words(
        "Read the scale: how warm is it?",
        ("Which temperature can be read off here?", "Look at the thermometer. What does it say?"),
    ),
    "Which sample has the higher temperature?": Words(
        "One of the gases may be warmer: which?",
        ("Compare the samples: which is hotter?", "Which sample would a thermometer find warmer?"),
    ),
    "Which was the {kind} variable in this experiment?": Words(
        "In what was done here, what served as {kind} variable?",
        ("Name the {kind} variable of the experiment.", "Read about the experiment: what was its {kind} variable?"),
    ),
    # vocabulary
    "Which word would you find on a dictionary page with the guide words {first} - {last}?": Words(
        "A page of the dictionary goes from {first} to {last}. What else is on it?",
        (
            "The guide words are {first} - {last}. Which word is on that page?",
            "Which of these words stands between {first} and {last} in a dictionary?",
        ),
    ),
    "Which word rhymes with {word}?": Words(
        "Find another word that ends in the sound of {word}.",
        ("Pick the word that rhymes with {word}.", "What rhymes with {word}?"),
    ),
    "Which figure of speech is used in this text? {text}": Words(
        "Name the figure of speech that you find here: {text}",
        ("{text} Which figure of speech is that?", "Which figure of speech does this text use? {text}"),
    ),
    'What does the word "{word}" mean in the text?': Words('In this text, what is meant by "{word}"?'),
}


def reworded(question: str) -> Words:
    """The same question in other words. Raises `ValueError` for one that no entry fits."""
    for pattern, words in _patterns():
        if found := pattern.fullmatch(question):
            names = found.groupdict()
            return Words(words.test.format(**names), tuple(each.format(**names) for each in words.train))
    raise ValueError(f"minisqa/wordings.py has no other words for {question!r}; add an entry to WORDINGS")


@lru_cache(maxsize=1)
def _patterns() -> list[tuple[re.Pattern[str], Words]]:
    return [(_pattern(asked), words) for asked, words in WORDINGS.items()]


def _pattern(asked: str) -> re.Pattern[str]:
    """The template as a regular expression; a name that comes again must be the same again."""
    texts, names = re.split(r"\{\w+\}", asked), re.findall(r"\{(\w+)\}", asked)
    groups = [f"(?P={n})" if n in names[:i] else f"(?P<{n}>.+)" for i, n in enumerate(names)]
    return re.compile("".join(re.escape(text) + group for text, group in zip(texts, [*groups, ""])))
