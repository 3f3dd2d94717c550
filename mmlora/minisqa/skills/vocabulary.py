"""Language science, part two: words, their order in a dictionary, their sound and their meaning. All text."""

from __future__ import annotations

import random
from string import ascii_lowercase

from mmlora.minisqa.core import Draft, skill
from mmlora.minisqa.skills.clues import CLUES
from mmlora.minisqa.words import NAMES, listing

REFERENCE = {"subject": "language science", "topic": "reference-skills", "category": "Reference skills"}
WORDS = """
acorn angel apron arrow autumn badge basket beach bottle bridge button cabin candle castle cherry cloud cotton daisy
desert dinner doctor dragon eagle earth elbow engine evening falcon feather finger forest fossil garden ginger glove
grape guitar hammer harbor helmet honey horse igloo island ivory jacket jelly jewel jungle kettle kitten koala ladder
lantern lemon lizard magnet market mirror monkey mountain napkin needle nephew number ocean olive orange otter paddle
parrot pencil planet puzzle quarter queen quilt rabbit ribbon river rocket saddle salmon shadow silver spider summer
tablet teacher thunder tiger tunnel turtle umbrella uncle valley velvet violin wagon walnut whistle window winter yard
yogurt zebra zipper
""".split()  # noqa: SIM905


def _starting(first: str) -> list[str]:
    return [word for word in WORDS if word[0] == first]


LETTERS = sorted({word[0] for word in WORDS})


@skill(
    "Use guide words",
    **REFERENCE,
    grades=(3, 7),
    weight=1.8,
    lecture="""Guide words appear on each page of a dictionary. They tell you the first word and the last word on
    the page. The other words on the page come between the guide words in alphabetical order. Compare the first
    letters.""",
)
def guide_words(rng: random.Random) -> Draft:
    low = rng.randrange(len(LETTERS) - 4)
    high = min(low + rng.randint(3, 6), len(LETTERS) - 1)
    inside = rng.choice(LETTERS[low + 1 : high])
    outside = rng.sample([x for x in LETTERS if not LETTERS[low] <= x <= LETTERS[high]], 2)
    choices = tuple(rng.choice(_starting(x)) for x in (inside, *outside))
    first, last = LETTERS[low], LETTERS[high]
    between = [x for x in ascii_lowercase if first < x < last]
    return Draft(
        f"Which word would you find on a dictionary page with the guide words "
        f"{rng.choice(_starting(first))} - {rng.choice(_starting(last))}?",
        choices,
        0,
        f"Between {first} and {last} come {listing(between)}. Of {listing([f'{word[0]} for {word}' for word in sorted(choices)])}, "
        f"only {inside} is there: {choices[0]}.",
    )


FAMILIES = {
    "at": "cat hat bat rat mat",
    "ing": "king ring wing swing sing",
    "ell": "bell shell well smell yell",
    "ake": "cake lake snake rake wake",
    "ight": "light night right knight fight",
    "og": "dog frog log fog hog",
    "all": "ball wall hall tall fall",
    "ock": "rock sock clock lock block",
    "ug": "bug rug mug hug jug",
    "ip": "ship lip trip chip zip",
    "ain": "rain train chain brain grain",
    "ow": "snow crow grow slow glow",
    "est": "nest vest west best chest",
    "and": "hand sand land band stand",
    "ick": "stick brick chick kick trick",
    "oon": "moon spoon noon balloon cartoon",
    "ink": "pink drink sink think wink",
    "op": "shop mop stop hop drop",
    "ay": "day play tray clay gray",
    "ill": "hill mill pill drill grill",
    "ead": "bread thread head spread dread",
}
FAMILIES = {ending: words.split() for ending, words in FAMILIES.items()}


@skill(
    "Which words rhyme?",
    subject="language science",
    topic="phonological-awareness",
    category="Rhyming",
    grades=(1, 2),
    weight=1.8,
    lecture="""Words rhyme when they end with the same sound. Rhyming words often have the same last letters, as in
    pin and fin.""",
)
def rhymes(rng: random.Random) -> Draft:
    same, *others = families = rng.sample(list(FAMILIES), 3)
    asked, right = rng.sample(FAMILIES[same], 2)
    choices = (right, *(rng.choice(FAMILIES[other]) for other in others))
    ends = [f"-{ending} in {word}" for word, ending in sorted(zip(choices, families))]
    return Draft(
        f"Which word rhymes with {asked}?",
        choices,
        0,
        f"The word {asked} ends in -{same}. The endings are {listing(ends)}. The same ending, -{same}, is in {right}.",
    )


QUALITIES = (
    ("brave", "a lion"), ("quiet", "a mouse"), ("busy", "a bee"), ("cold", "ice"), ("light", "a feather"),
    ("strong", "an ox"), ("sharp", "a knife"), ("slow", "a snail"), ("bright", "the sun"),
)  # fmt: skip
LIKES = ("swims like a fish", "runs like the wind", "sleeps like a log", "eats like a horse", "sings like a bird")
IMAGES = (
    ("room", "a jungle"), ("smile", "a ray of sunshine"), ("mind", "a computer"), ("voice", "music"),
    ("desk", "a disaster zone"), ("brother", "a night owl"), ("heart", "a stone"), ("idea", "a gem"),
    ("secret", "a locked box"), ("garden", "a rainbow"), ("sister", "an angel"), ("house", "a zoo"),
)  # fmt: skip
PERSONS = (
    ("wind", "whispered to"), ("sun", "smiled at"), ("old car", "refused to obey"), ("moon", "winked at"),
    ("alarm clock", "screamed at"), ("river", "danced for"), ("tall flower", "bowed to"), ("last cookie", "begged"),
    ("city", "sang to"), ("rusty door", "complained to"), ("bright star", "laughed at"),
)  # fmt: skip
CLAIMS = (
    "waited a million years for the bus", "carried a bag that weighed a ton", "could eat a whole elephant",
    "cried a river of tears", "has told that joke a billion times", "has a mountain of homework",
    "ran faster than lightning", "could sleep for a thousand years", "laughed until the roof fell off",
    "knows everybody on the planet", "grew ten feet last night", "jumped over the moon for joy",
)  # fmt: skip


def _simile(rng):
    who, (how, what) = rng.choice(NAMES), rng.choice(QUALITIES)
    word, sentence = rng.choice((("as", f"{who} is as {how} as {what}."), ("like", f"{who} {rng.choice(LIKES)}.")))
    return sentence, f'The word "{word}" compares two unlike things'


def _metaphor(rng):
    thing, image = rng.choice(IMAGES)
    return f"{rng.choice(NAMES)}'s {thing} is {image}.", f'It says that the {thing} is {image}, without "like" or "as"'


def _personification(rng):
    thing, does = rng.choice(PERSONS)
    return f"The {thing} {does} {rng.choice(NAMES)}.", f"The {thing} {does} somebody as a person would"


def _hyperbole(rng):
    return f"{rng.choice(NAMES)} {rng.choice(CLAIMS)}.", "Nobody can really do that, it exaggerates a great deal"


SOUNDS = {
    "b": ("Busy Bob", "Brave Betty", "Big Bill"),
    "p": ("Proud Peter", "Polite Polly", "Playful Pat"),
    "s": ("Silly Sue", "Sleepy Simon", "Smart Sally"),
    "m": ("Merry Mary", "Mighty Mike", "Modest Milly"),
    "t": ("Tiny Tim", "Tired Tracy", "Tall Tony"),
}
SOUND_ENDS = {
    "b": ("bakes brown bread", "buys blue bags", "bounces big balls", "builds better boats"),
    "p": ("picks pretty plums", "paints purple pigs", "packs pink pants", "plays perfect piano"),
    "s": ("sells seven socks", "sips sweet soda", "sees six seals", "sings sad songs"),
    "m": ("makes many muffins", "moves my mop", "mixes mango milk", "maps muddy mountains"),
    "t": ("takes two toys", "tastes ten tomatoes", "tells tall tales", "touches tender toads"),
}


def _alliteration(rng):
    letter = rng.choice(list(SOUNDS))
    return (
        f"{rng.choice(SOUNDS[letter])} {rng.choice(SOUND_ENDS[letter])}.",
        f'Nearly every word begins with the sound "{letter}"',
    )


FIGURES = {
    "simile": _simile,
    "metaphor": _metaphor,
    "personification": _personification,
    "hyperbole": _hyperbole,
    "alliteration": _alliteration,
}


@skill(
    "Identify figures of speech",
    subject="language science",
    topic="literary-devices",
    category="Figurative language",
    grades=(6, 12),
    weight=1.8,
    lecture="""Figures of speech are words that go beyond their usual meaning. A simile compares with like or as. A
    metaphor says that one thing is another. Personification makes a thing act like a person. Hyperbole exaggerates.
    Alliteration repeats the first sound of words.""",
)
def figures_of_speech(rng: random.Random) -> Draft:
    choices = tuple(rng.sample(list(FIGURES), 3))
    answer = rng.randrange(3)
    sentence, why = FIGURES[choices[answer]](rng)
    return Draft(
        f"Which figure of speech is used in this text? {sentence}",
        choices,
        answer,
        f"{why}. This is {choices[answer]}.",
    )


@skill(
    "Use context clues to find the meaning of a word",
    subject="language science",
    topic="vocabulary",
    category="Word meaning",
    grades=(4, 9),
    weight=1.8,
    lecture="""When you do not know a word, look at the words and sentences around it. They often show what it
    means. These hints are called context clues.""",
)
def context_clues(rng: random.Random) -> Draft:
    word, meaning, *sentences = rng.choice(CLUES)
    others = rng.sample([other[1] for other in CLUES if other[1] != meaning], 2)
    sentence = rng.choice(sentences).format(rng.choice(NAMES))
    return Draft(
        f'What does the word "{word}" mean in the text?',
        (meaning, *others),
        0,
        f'The text says: {sentence}. So "{word}" means {meaning}.',
        hint=f"Read the text. {sentence}.",
    )
