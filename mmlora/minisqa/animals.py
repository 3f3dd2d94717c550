"""The biology skills on animals: their classes, their body coverings and their limbs."""

from __future__ import annotations

import random

from PIL import Image, ImageDraw, ImageOps

from mmlora.minisqa.core import Draft, skill
from mmlora.minisqa.draw import SIZE, canvas, finish, icon, paste, shade
from mmlora.minisqa.words import listing, spoken, with_article

BIOLOGY = {"subject": "natural science", "topic": "biology"}

ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")


def backdrop(rng: random.Random) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A canvas that may have a ground, a pond or a hill of any colour: it says nothing about the animal on it."""
    image, pen = canvas(rng)
    ground = shade(rng, rng.choice(((150, 205, 130), (225, 205, 150), (150, 205, 230), (205, 190, 175))), 20)
    kind, top = rng.randrange(4), rng.randint(140, 215)
    if kind == 1:
        pen.rectangle((0, top, SIZE, SIZE), fill=ground)
    elif kind == 2:
        middle = rng.randint(40, 216)
        pen.ellipse((middle - 220, top, middle + 220, top + 300), fill=ground)
    elif kind == 3:
        inset = rng.randint(4, 24)
        pen.rounded_rectangle((inset, inset, SIZE - inset, SIZE - inset), radius=rng.randint(0, 60), fill=ground)
    return image, pen


def animal_picture(rng: random.Random, name: str, size: int) -> Image.Image:
    """The icon, facing either way and a little tilted. Frogs, of which there is one icon, come in several colours."""
    picture = icon(name, size)
    if name == "frog" and (shift := rng.choice((0, 0, -45, 60, 110, -75))):
        hue, saturation, value = picture.convert("RGB").convert("HSV").split()
        turned = Image.merge("HSV", (hue.point([(v + shift) % 256 for v in range(256)]), saturation, value))
        picture = Image.merge("RGBA", (*turned.convert("RGB").split(), picture.getchannel("A")))
    if rng.random() < 0.5:
        picture = ImageOps.mirror(picture)
    return picture.rotate(rng.uniform(-12, 12), resample=Image.BILINEAR)


CLASSES = {
    "mammal": ("dog", "cat", "cow", "horse", "pig", "sheep", "rabbit", "mouse", "tiger", "lion", "elephant", "giraffe",
               "zebra", "kangaroo", "monkey", "gorilla", "bear", "fox", "wolf", "camel", "squirrel", "deer", "koala"),
    "bird": ("chicken", "rooster", "duck", "owl", "eagle", "parrot", "penguin", "flamingo", "peacock", "swan", "turkey",
             "dove", "goose"),
    "fish": ("fish", "tropical_fish", "blowfish", "shark"),
    "reptile": ("turtle", "snake", "lizard", "crocodile"),
    "amphibian": ("frog",),
}
CLASS_MARKS = {
    "mammal": "fur or hair", "bird": "feathers and a beak", "fish": "fins and lives in water",
    "reptile": "dry, scaly skin", "amphibian": "moist, smooth skin",
}


@skill(
    "Identify mammals, birds, fish, reptiles, and amphibians", category="Classification", grades=(1, 4), **BIOLOGY,
    lecture="""Mammals have hair or fur and feed their young milk. Birds have feathers, wings and a beak. Fish live
    under water and have fins. Reptiles have scaly, waterproof skin. Amphibians have moist skin and begin life in
    water.""",
)
def animal_class(rng: random.Random) -> Draft:
    choices = tuple(rng.sample(list(CLASSES), 4))
    answer = rng.randrange(4)
    kind = choices[answer]
    name = rng.choice(CLASSES[kind])
    image, side = _portrait(rng, name)
    animal = spoken(name)
    solution = (
        f"The picture shows {with_article(animal)}, which has {CLASS_MARKS[kind]}. "
        f"So the {animal} is {with_article(kind)}."
    )
    caption = (
        f"A picture of {with_article(animal)} {side}. "
        f"The {animal} is {with_article(kind)} and has {CLASS_MARKS[kind]}."
    )
    return Draft("What kind of animal is shown in the picture?", choices, answer, solution, image, caption)


def _portrait(rng: random.Random, name: str) -> tuple[Image.Image, str]:
    """One animal, large, anywhere on a backdrop; and where it is."""
    image, _ = backdrop(rng)
    size = rng.randrange(112, 193, 16)
    room = (SIZE - size) / 2
    x, y = rng.uniform(-room, room), rng.uniform(-room, room)
    paste(image, animal_picture(rng, name, size), (SIZE / 2 + x, SIZE / 2 + y))
    across = "left" if x < -24 else "right" if x > 24 else ""
    down = "upper" if y < -24 else "lower" if y > 24 else ""
    place = f"{down} {across}".strip()
    side = f"in the {place} part of the picture" if place else "in the middle of the picture"
    return finish(rng, image), side


COVERINGS = {
    "feathers": ("duck", "owl", "eagle", "parrot", "flamingo", "peacock", "swan", "turkey", "dove", "goose", "rooster"),
    "thick fur": ("bear", "fox", "wolf", "squirrel", "lion", "otter", "rabbit", "cat", "tiger", "gorilla", "panda"),
    "scales": ("fish", "tropical_fish", "snake", "crocodile", "lizard"),
    "a hard shell": ("turtle", "snail", "crab"),
    "sharp spines": ("hedgehog", "blowfish"),
}


@skill(
    "Animal adaptations: skins and body coverings", category="Adaptations", grades=(2, 5), **BIOLOGY,
    lecture="""An adaptation is an inherited trait that helps an organism survive. The covering of an animal's body is
    one: fur keeps it warm, feathers help it fly or stay dry, scales, shells and spines protect it.""",
)
def body_covering(rng: random.Random) -> Draft:
    choices = tuple(rng.sample(list(COVERINGS), 4))
    answer = rng.randrange(4)
    name = rng.choice(COVERINGS[choices[answer]])
    image, side = _portrait(rng, name)
    animal = spoken(name)
    covered = f"The body of {with_article(animal)} is covered with {choices[answer]}."
    solution = f"The picture shows {with_article(animal)}. {covered}"
    caption = f"A picture of {with_article(animal)} {side}. {covered}"
    return Draft("What covers the body of the animal in the picture?", choices, answer, solution, image, caption)


#: What the body is adapted for -> (what shows it, animals). An animal of one row cannot do what another row says.
MOVES = {
    "flying": ("wings", ("eagle", "owl", "parrot", "dove", "butterfly", "bee", "bat")),
    "living under water": ("fins or arms", ("fish", "tropical_fish", "shark", "squid", "octopus")),
    "running on hooves": ("hooves", ("horse", "zebra", "deer", "cow", "goat", "giraffe", "camel", "sheep")),
    "crawling on its belly": ("no legs", ("snake", "worm", "snail")),
}


@skill(
    "Animal adaptations: feet and limbs", category="Adaptations", grades=(3, 6), **BIOLOGY,
    lecture="""An adaptation is an inherited trait that helps an organism survive. Limbs are adapted to ways of moving:
    wings to flying, fins and flippers to swimming, long legs with hooves to running on hard ground.""",
)
def limbs(rng: random.Random) -> Draft:
    upright = rng.random() < 0.4
    choices = ROWS if upright else COLUMNS
    answer = rng.randrange(3)
    moves = rng.sample(list(MOVES), 3)
    names = [rng.choice(MOVES[move][1]) for move in moves]
    size = rng.choice((72, 80))
    image, _ = backdrop(rng)
    for i, name in enumerate(names):
        along = 43 + 85 * i + rng.uniform(-3, 3)
        across = 128 + rng.uniform(-60, 60)
        paste(image, animal_picture(rng, name, size), (across, along) if upright else (along, across))
    animals = [with_article(spoken(name)) for name in names]
    start, end = ("at the top", "at the bottom") if upright else ("on the left", "on the right")
    where = (start, "in the middle", end)
    asked, order = moves[answer], "top to bottom" if upright else "left to right"
    solution = (
        f"From {order}, the animals are {listing(animals)}. "
        f"The {spoken(names[answer])} has {MOVES[asked][0]}, and it is {where[answer]}."
    )
    caption = f"A picture of three animals: {listing([f'{a} {w}' for a, w in zip(animals, where)])}."
    question = f"Where is the animal that is adapted for {asked}?"
    return Draft(question, choices, answer, solution, finish(rng, image), caption)
