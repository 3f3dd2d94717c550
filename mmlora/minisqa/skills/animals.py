"""The biology skills on animals: their classes and their body coverings."""

from __future__ import annotations

import random

from PIL import Image, ImageDraw, ImageOps

from mmlora.minisqa.core import Draft, skill
from mmlora.minisqa.draw import SIZE, canvas, finish, icon, paste, shade
from mmlora.minisqa.words import spoken, with_article

BIOLOGY = {"subject": "natural science", "topic": "biology"}


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
    "mammal": (
        "dog",
        "cat",
        "cow",
        "horse",
        "pig",
        "sheep",
        "rabbit",
        "mouse",
        "tiger",
        "lion",
        "elephant",
        "giraffe",
        "zebra",
        "kangaroo",
        "monkey",
        "gorilla",
        "bear",
        "fox",
        "wolf",
        "camel",
        "squirrel",
        "deer",
        "koala",
    ),
    "bird": (
        "chicken",
        "rooster",
        "duck",
        "owl",
        "eagle",
        "parrot",
        "penguin",
        "flamingo",
        "peacock",
        "swan",
        "turkey",
        "dove",
        "goose",
    ),
    "fish": ("fish", "tropical_fish", "blowfish", "shark"),
    "reptile": ("turtle", "snake", "lizard", "crocodile"),
    "amphibian": ("frog",),
}
CLASS_MARKS = {
    "mammal": "fur or hair",
    "bird": "feathers and a beak",
    "fish": "fins and lives in water",
    "reptile": "dry, scaly skin",
    "amphibian": "moist, smooth skin",
}


@skill(
    "Identify mammals, birds, fish, reptiles, and amphibians",
    category="Classification",
    grades=(1, 4),
    **BIOLOGY,
    lecture="""Mammals have hair or fur and feed their young milk. Birds have feathers, wings and a beak. Fish live
    under water and have fins. Reptiles have scaly, waterproof skin. Amphibians have moist skin and begin life in
    water.""",
)
def animal_class(rng: random.Random) -> Draft:
    choices = tuple(rng.sample(list(CLASSES), 4))
    answer = rng.randrange(4)
    kind = choices[answer]
    name = rng.choice(CLASSES[kind])
    image = _portrait(rng, name)
    animal = spoken(name)
    solution = (
        f"The picture shows {with_article(animal)}, which has {CLASS_MARKS[kind]}. "
        f"So the {animal} is {with_article(kind)}."
    )
    return Draft("What kind of animal is shown in the picture?", choices, answer, solution, image, _named(animal))


def _portrait(rng: random.Random, name: str) -> Image.Image:
    """One animal, large, anywhere on a backdrop."""
    image, _ = backdrop(rng)
    size = rng.randrange(112, 193, 16)
    room = (SIZE - size) / 2
    x, y = rng.uniform(-room, room), rng.uniform(-room, room)
    paste(image, animal_picture(rng, name, size), (SIZE / 2 + x, SIZE / 2 + y))
    return finish(rng, image)


def _named(animal: str) -> str:
    """The same caption in both skills, for the picture does not say which of them it belongs to."""
    return f"The animal is {with_article(animal)}."


COVERINGS = {
    "feathers": ("duck", "owl", "eagle", "parrot", "flamingo", "peacock", "swan", "turkey", "dove", "goose", "rooster"),
    "thick fur": ("bear", "fox", "wolf", "squirrel", "lion", "otter", "rabbit", "cat", "tiger", "gorilla", "panda"),
    "scales": ("fish", "tropical_fish", "snake", "crocodile", "lizard"),
    "a hard shell": ("turtle", "snail", "crab"),
    "sharp spines": ("hedgehog", "blowfish"),
}


@skill(
    "Animal adaptations: skins and body coverings",
    category="Adaptations",
    grades=(2, 5),
    **BIOLOGY,
    lecture="""An adaptation is an inherited trait that helps an organism survive. The covering of an animal's body is
    one: fur keeps it warm, feathers help it fly or stay dry, scales, shells and spines protect it.""",
)
def body_covering(rng: random.Random) -> Draft:
    choices = tuple(rng.sample(list(COVERINGS), 4))
    answer = rng.randrange(4)
    name = rng.choice(COVERINGS[choices[answer]])
    image = _portrait(rng, name)
    animal = spoken(name)
    covered = f"The body of {with_article(animal)} is covered with {choices[answer]}."
    solution = f"The picture shows {with_article(animal)}. {covered}"
    return Draft("What covers the body of the animal in the picture?", choices, answer, solution, image, _named(animal))
