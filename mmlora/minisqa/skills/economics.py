"""Social science: trades, goods and services, supply and demand."""

from __future__ import annotations

import random

from mmlora.minisqa.core import Draft, skill
from mmlora.minisqa.draw import canvas, finish, icon, paste, shade
from mmlora.minisqa.words import NAMES

ECONOMICS = {"subject": "social science", "topic": "economics", "category": "Basic economic principles"}
#: Foods whose icons look unlike each other, with their article.
FOODS = (
    "an apple", "a banana", "a carrot", "an egg", "a lemon", "a watermelon", "an ice cream", "a cookie",
    "a strawberry", "a pineapple", "some broccoli", "an eggplant", "some bread", "some cheese",
)  # fmt: skip


def _bare(food: str) -> str:
    return food.split(" ", 1)[1]


def _trays(rng: random.Random, trays: list[list[str]]):
    """Two trays side by side, each with up to three foods from top to bottom."""
    image, draw = canvas(rng)
    fill = shade(rng, rng.choice(((214, 190, 150), (190, 200, 210), (200, 215, 190), (225, 205, 205))), 15)
    for left, foods in zip((8, 132), trays):
        draw.rounded_rectangle((left, 10, left + 116, 246), 14, fill=fill, outline=(90, 80, 70), width=4)
        size = {2: rng.randint(84, 96), 3: rng.randint(66, 72)}[len(foods)]
        for place, food in enumerate(foods):
            y = 14 + (place + 0.5) * 228 / len(foods)
            where = (left + 58 + rng.randint(-8, 8), y + rng.randint(-3, 3))
            paste(image, icon(_bare(food).replace(" ", "_"), size), where)
    return finish(rng, image)


@skill(
    "Trade and specialization",
    **ECONOMICS,
    grades=(3, 7),
    lecture="""Trade happens when people agree to exchange goods. When two people trade, each gives up something
    that he or she has and gets something that the other one has.""",
)
def trade(rng: random.Random) -> Draft:
    left, right = rng.sample(NAMES, 2)
    foods = rng.sample(FOODS, rng.choice((4, 5)))
    side = rng.randrange(2)
    if rng.random() < 0.5:
        asked, answer = foods[0], side
        mine, theirs = [asked, foods[1]], foods[2:]
        question, choices = f"Who can trade away the {_bare(asked)}?", (left, right)
        where = ("left", "right")[side]
        solution = f"The {_bare(asked)} is on the {where} tray. That tray belongs to {choices[side]}."
        trays = [mine, theirs] if side == 0 else [theirs, mine]
    else:
        options, spare = foods[:3], foods[3:]
        answer = rng.randrange(3)
        giver, taker = (left, right) if side == 0 else (right, left)
        theirs = [options[answer], spare[0]]
        mine = [food for food in options if food != options[answer]] + spare[1:]
        question, choices = f"Which food can {taker} get from {giver} in a trade?", tuple(map(_bare, options))
        rng.shuffle(theirs)
        solution = (
            f"The {('left', 'right')[side]} tray is {giver}'s. It holds {theirs[0]} and {theirs[1]}. "
            f"So {taker} can get the {choices[answer]}."
        )
        trays = [theirs, mine] if side == 0 else [mine, theirs]
    for tray in trays:
        rng.shuffle(tray)
    return Draft(
        question,
        choices,
        answer,
        solution,
        _trays(rng, trays),
        f"Left tray: {', '.join(map(_bare, trays[0]))}. Right tray: {', '.join(map(_bare, trays[1]))}.",
        f"{left} has the left tray and {right} has the right tray.",
    )


GOODS = (
    "a pair of boots", "a red bicycle", "a box of pencils", "a loaf of bread", "a wooden table", "a pair of glasses",
    "a new phone", "a bag of apples", "a toy train", "a winter coat", "a soccer ball", "a history book",
    "a garden shovel", "a bottle of juice", "a gold ring", "a sofa", "a bar of soap", "a dog leash", "a guitar",
    "a school bag",
)  # fmt: skip
SERVICES = (
    "cutting hair", "driving a taxi", "teaching math", "fixing a bicycle", "walking a dog", "washing windows",
    "delivering mail", "painting a house", "treating a sick cat", "mowing a lawn", "cleaning teeth",
    "putting out fires", "flying a plane", "guiding tourists", "repairing a roof", "singing at a wedding",
    "babysitting", "coaching a team", "tuning a piano", "serving meals",
)  # fmt: skip


@skill(
    "Identify goods and services",
    **ECONOMICS,
    grades=(1, 3),
    weight=0.8,
    lecture="""Everything you can buy is a good or a service. A good is something that you can touch or hold. A
    service is a job that somebody does for other people.""",
)
def goods_and_services(rng: random.Random) -> Draft:
    if rng.random() < 0.5:
        choices = (rng.choice(SERVICES), *rng.sample(GOODS, 2))
        question, why = "Which of these is a service?", "A service is a job that one person does for another"
    else:
        choices = (rng.choice(GOODS), *rng.sample(SERVICES, 2))
        question, why = "Which of these is a good?", "A good is a thing that you can touch or hold"
    return Draft(question, choices, 0, f"{why}. The only one here is {choices[0]}.")


SOLD = (
    "kites", "hats", "cakes", "lamps", "bikes", "chairs", "boots", "toys", "tents", "drums", "books", "plants",
    "shirts", "clocks",
)  # fmt: skip
CHANGES = (
    ("More people want to buy {} than last year", "Demand rises", 0),
    ("Fewer people want to buy {} than last year", "Demand falls", 1),
    ("A fire destroys half of all {}", "Supply falls", 0), ("New machines make many more {}", "Supply rises", 1),
    ("Half of the factories that make {} close", "Supply falls", 0),
    ("Nobody thinks that {} are in fashion now", "Demand falls", 1),
    ("Three new factories start to make {}", "Supply rises", 1),
    ("A famous singer makes {} popular", "Demand rises", 0),
)  # fmt: skip


@skill(
    "Supply and demand",
    **ECONOMICS,
    grades=(7, 12),
    weight=0.8,
    lecture="""Supply is how much sellers offer and demand is how much buyers want. When demand is greater than
    supply there is a shortage and prices tend to rise. When supply is greater than demand there is a surplus and
    prices tend to fall.""",
)
def supply_and_demand(rng: random.Random) -> Draft:
    things, name = rng.choice(SOLD), rng.choice(NAMES)
    if rng.random() < 0.5:
        small = 10 * rng.randint(1, 4)
        large = small + 10 * rng.randint(3, 5)
        answer = rng.randrange(2)
        have, want = ((small, large), (large, small))[answer]
        choices = ("a shortage", "a surplus")
        return Draft(
            f"Is there a shortage or a surplus of {things}?",
            choices,
            answer,
            f"Buyers want {want} and {name} has {have}. {('Demand', 'Supply')[answer]} is greater, "
            f"so there is {choices[answer]}.",
            hint=f"{name} has {have} {things} to sell. At this price, people want to buy {want} {things}.",
        )
    change, effect, answer = rng.choice(CHANGES)
    choices = ("it will go up", "it will go down")
    return Draft(
        f"What will probably happen to the price of {things}?",
        choices,
        answer,
        f"{effect}, and that makes {things} {('more', 'less')[answer]} expensive. As for the price, {choices[answer]}.",
        hint=f"{name} sells {things}. {change.format(things)}.",
    )
