"""Social science: graphs of what people made, sold or wanted, trades, and choices between goods."""

from __future__ import annotations

import random

from mmlora.minisqa.core import Draft, skill
from mmlora.minisqa.draw import COLORS, SIZE, canvas, finish, icon, label, paste, shade
from mmlora.minisqa.words import NAMES, capital

GRAPHS = dict(subject="social science", topic="economics", category="Graphs")
ECONOMICS = dict(subject="social science", topic="economics", category="Basic economic principles")

#: Colours that stay apart on a small picture.
CLEAR = ("red", "yellow", "green", "blue", "purple", "orange", "black")


def _listed(items: list[str]) -> str:
    return f"{', '.join(items[:-1])} and {items[-1]}"


# ---- graphs --------------------------------------------------------------------------------------

TOP = 8  # the highest value on a graph's scale

#: What was counted, what was done to it, and that verb's base form.
COUNTED = (
    ("books", "read", "read"), ("goals", "scored", "score"), ("trees", "planted", "plant"), ("cans", "collected", "collect"),
    ("cakes", "sold", "sell"), ("fish", "caught", "catch"), ("games", "won", "win"), ("letters", "mailed", "mail"),
    ("kites", "made", "make"), ("stamps", "found", "find"),
)  # fmt: skip


def _scale(rng: random.Random):
    """A canvas with the axes of a graph from 0 to `TOP`; also the pen and the height of a value in pixels."""
    image, draw = canvas(rng)
    bottom, unit = rng.randint(228, 240), rng.uniform(24, 26)
    left, ruled = 38, rng.random() < 0.7
    for value in range(TOP + 1):
        y = bottom - value * unit
        if ruled:
            draw.line((left, y, SIZE - 10, y), fill=(190, 190, 195))
        if value % 2 == 0:
            label(draw, (20, y), str(value), 24)
    draw.line((left, 10, left, bottom, SIZE - 10, bottom), fill=(70, 70, 75), width=4)
    return image, draw, lambda value: bottom - value * unit


def _bars(rng: random.Random, colors: list[str], values: list[int]):
    image, draw, height = _scale(rng)
    slot = (SIZE - 54) / len(colors)
    half = slot * rng.uniform(0.28, 0.42)
    edge = rng.choice((0, 2))
    for place, (color, value) in enumerate(zip(colors, values)):
        middle = 44 + (place + 0.5) * slot
        box = (middle - half, height(value), middle + half, height(0))
        draw.rectangle(box, fill=shade(rng, COLORS[color]), outline=(40, 40, 40), width=edge)
    return finish(rng, image)


@skill(
    "Interpret bar graphs", **GRAPHS, grades=(2, 6),
    lecture="""A bar graph uses bars to compare amounts. The higher the bar, the greater the amount. To read a bar, follow its top
    to the scale at the side.""",
)
def bar_graphs(rng: random.Random) -> Draft:
    colors = rng.sample(CLEAR, rng.choice((3, 3, 4)))
    things, done, do = rng.choice(COUNTED)
    who = rng.randrange(len(colors))
    kind = rng.choice(("most", "fewest", "number"))
    if kind == "number":
        start, step = rng.randint(1, 2), rng.randrange(3)
        numbers = (start, start + 3, start + 6)
        values = [rng.randint(1, TOP) for _ in colors]
        values[who] = numbers[step]
        question = f"The bars show the {things} that each team {done}. How many did the {colors[who]} team {do}?"
        choices, answer, last = tuple(map(str, numbers)), step, f"The {colors[who]} bar reaches {numbers[step]}."
    else:
        values = [rng.randint(1, 6) if kind == "most" else rng.randint(3, TOP) for _ in colors[1:]]
        values.insert(who, rng.randint(max(values) + 2, TOP) if kind == "most" else rng.randint(1, min(values) - 2))
        question = f"The bars show the {things} that each team {done}. Which team {done} the {kind} {things}?"
        choices, answer = tuple(colors), who
        last = f"The {'tallest' if kind == 'most' else 'shortest'} bar is {colors[who]}."
    facts = _listed([f"{color} {value}" for color, value in zip(colors, values)])
    return Draft(question, choices, answer, f"From left to right the bars are {facts}. {last}", _bars(rng, colors, values),
                 f"A bar graph with {len(colors)} colored bars on a scale from 0 to {TOP}. From left to right the bars are {facts}.")


def _lines(rng: random.Random, colors: list[str], ends: list[tuple[int, int]]):
    image, draw, height = _scale(rng)
    stops, width, dots = rng.choice((3, 4, 5)), rng.randint(6, 8), rng.random() < 0.5
    for color, (start, end) in zip(colors, ends):
        ink, bend = shade(rng, COLORS[color], 15), rng.uniform(0.8, 1.25)
        shares = [i / (stops - 1) for i in range(stops)]
        points = [(50 + share * 188, height(start + (end - start) * share**bend)) for share in shares]
        draw.line(points, fill=ink, width=width, joint="curve")
        for x, y in points if dots else ():
            draw.ellipse((x - 7, y - 7, x + 7, y + 7), fill=ink)
    return finish(rng, image)


TRENDS = ("it went up", "it went down", "it stayed the same")
TREND_ENDS = {
    "it went up": [(a, b) for a in range(1, 5) for b in range(a + 3, TOP + 1)],
    "it went down": [(b, a) for a in range(1, 5) for b in range(a + 3, TOP + 1)],
    "it stayed the same": [(a, a) for a in range(1, TOP + 1)],
}
ALL_ENDS = [ends for trend in TREND_ENDS.values() for ends in trend]
MEASURED = ("number of visitors", "price of bread", "number of cars", "price of milk", "number of jobs", "number of shops")


@skill(
    "Interpret line graphs", **GRAPHS, grades=(4, 8),
    lecture="""A line graph shows how an amount changes over time. Read it from left to right. A line that rises shows an increase, a line
    that falls shows a decrease, and a flat line shows no change.""",
)
def line_graphs(rng: random.Random) -> Draft:
    colors = rng.sample(("red", "green", "blue", "orange", "purple", "black"), 2)
    measured, who = rng.choice(MEASURED), rng.randrange(2)
    if rng.random() < 0.5:
        answer, choices = rng.randrange(3), TRENDS
        asked = rng.choice(TREND_ENDS[TRENDS[answer]])
        other = rng.choice([ends for ends in ALL_ENDS if abs(ends[0] - asked[0]) + abs(ends[1] - asked[1]) > 3])
        ends = [asked, other] if who == 0 else [other, asked]
        question = f"The lines show the {measured} in two towns. What happened to it in the {colors[who]} town?"
        last = f"So for {colors[who]}, {TRENDS[answer]}."
        shown = f"The {colors[who]} line starts at {ends[who][0]} and ends at {ends[who][1]}."
    else:
        answer, choices = who, tuple(colors)
        more, late = rng.random() < 0.5, rng.random() < 0.5
        apart = rng.choice(TREND_ENDS["it went up"])  # a low and a high value
        asked = [apart[more == (place == who)] for place in range(2)]
        other = [rng.randint(1, TOP) for _ in colors]
        ends = list(zip(other, asked)) if late else list(zip(asked, other))
        when, word = ("at the end" if late else "at the start"), ("higher" if more else "lower")
        question = f"The lines show the {measured} in two towns. In which town was the {measured} {word} {when}?"
        last = f"The {word} one {when} is {colors[who]}."
        shown = f"{capital(when)} {colors[0]} is at {asked[0]} and {colors[1]} is at {asked[1]}."
    facts = [f"The {color} line starts at {start} and ends at {end}." for color, (start, end) in zip(colors, ends)]
    return Draft(question, choices, answer, f"{shown} {last}", _lines(rng, colors, ends),
                 f"A line graph with two lines on a scale from 0 to {TOP}. {' '.join(sorted(facts))}")


PIECES = ("cars in a street", "balloons at a party", "shirts in a shop", "boats in a harbor", "fish in a tank", "hats in a school")


@skill(
    "Interpret pie charts", **GRAPHS, grades=(5, 9),
    lecture="""A pie chart shows the parts of a whole. The larger the slice, the larger its share of the whole.""",
)
def pie_charts(rng: random.Random) -> Draft:
    shares = list(rng.choice(((6, 3, 1), (5, 3, 2), (7, 2, 1), (4, 3, 2, 1))))
    colors = rng.sample(CLEAR, len(shares))
    largest = rng.random() < 0.5
    answer = rng.randrange(len(colors))
    by_size = [colors[answer], *rng.sample([c for c in colors if c != colors[answer]], len(colors) - 1)]
    by_size = by_size if largest else by_size[::-1]
    image, draw = canvas(rng)
    radius, angle = rng.randint(84, 108), rng.uniform(0, 360)
    x, y = (rng.randint(radius + 10, SIZE - radius - 10) for _ in range(2))
    slices = list(zip(by_size, shares))
    rng.shuffle(slices)
    for color, share in slices:
        draw.pieslice((x - radius, y - radius, x + radius, y + radius), angle, angle + 36 * share,
                      fill=shade(rng, COLORS[color]), outline=(250, 250, 250), width=2)
        angle += 36 * share
    word, order = ("most" if largest else "least"), _listed(by_size)
    return Draft(f"The pie chart shows the colors of the {rng.choice(PIECES)}. Which color is {word} common?", tuple(colors), answer,
                 f"From largest to smallest the slices are {order}. The {'largest' if largest else 'smallest'} is {colors[answer]}.",
                 finish(rng, image), f"A pie chart with {len(colors)} colored slices. From largest to smallest the slices are {order}. "
                 f"Their shares are {_listed([f'{10 * share} percent' for share in shares])}.")


# ---- trade ---------------------------------------------------------------------------------------

#: Foods whose icons look unlike each other, with their article.
FOODS = ("an apple", "a banana", "a carrot", "an egg", "a lemon", "a watermelon", "an ice cream", "a cookie", "a strawberry",
         "a pineapple", "some broccoli", "an eggplant", "some bread", "some cheese")


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
            paste(image, icon(_bare(food).replace(" ", "_"), size), (left + 58 + rng.randint(-8, 8), y + rng.randint(-3, 3)))
    return finish(rng, image)


@skill(
    "Trade and specialization", **ECONOMICS, grades=(3, 7),
    lecture="""Trade happens when people agree to exchange goods. When two people trade, each gives up something that he or she has and
    gets something that the other one has.""",
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
        solution = (f"The {('left', 'right')[side]} tray is {giver}'s. It holds {theirs[0]} and {theirs[1]}. "
                    f"So {taker} can get the {choices[answer]}.")
        trays = [theirs, mine] if side == 0 else [mine, theirs]
    for tray in trays:
        rng.shuffle(tray)
    return Draft(question, choices, answer, solution, _trays(rng, trays),
                 f"Two trays with food. The left tray holds {_listed(trays[0])}. The right tray holds {_listed(trays[1])}.",
                 f"{left} has the left tray and {right} has the right tray.")


# ---- text ----------------------------------------------------------------------------------------

GOODS = (
    "a pair of boots", "a red bicycle", "a box of pencils", "a loaf of bread", "a wooden table", "a pair of glasses", "a new phone",
    "a bag of apples", "a toy train", "a winter coat", "a soccer ball", "a history book", "a garden shovel", "a bottle of juice",
    "a gold ring", "a sofa", "a bar of soap", "a dog leash", "a guitar", "a school bag",
)  # fmt: skip
SERVICES = (
    "cutting hair", "driving a taxi", "teaching math", "fixing a bicycle", "walking a dog", "washing windows", "delivering mail",
    "painting a house", "treating a sick cat", "mowing a lawn", "cleaning teeth", "putting out fires", "flying a plane",
    "guiding tourists", "repairing a roof", "singing at a wedding", "babysitting", "coaching a team", "tuning a piano", "serving meals",
)  # fmt: skip


@skill(
    "Identify goods and services", **ECONOMICS, grades=(1, 3), weight=0.8,
    lecture="""Everything you can buy is a good or a service. A good is something that you can touch or hold. A service is a job that
    somebody does for other people.""",
)
def goods_and_services(rng: random.Random) -> Draft:
    if rng.random() < 0.5:
        choices = (rng.choice(SERVICES), *rng.sample(GOODS, 2))
        question, why = "Which of these is a service?", "A service is a job that one person does for another"
    else:
        choices = (rng.choice(GOODS), *rng.sample(SERVICES, 2))
        question, why = "Which of these is a good?", "A good is a thing that you can touch or hold"
    return Draft(question, choices, 0, f"{why}. The only one here is {choices[0]}.")


#: Two things to choose between, and the verb.
OPTIONS = (
    ("see", "the lions", "the seals"), ("ride", "the roller coaster", "the carousel"), ("watch", "the circus", "the parade"),
    ("visit", "the castle", "the museum"), ("order", "the pizza", "the soup"), ("plant", "the roses", "the beans"),
    ("buy", "the kite", "the puzzle"), ("join", "the chess club", "the drama club"), ("bake", "the pie", "the cookies"),
    ("take", "the boat", "the bus"), ("play", "the board game", "the card game"), ("rent", "the canoe", "the bicycle"),
)  # fmt: skip
PRICES = (("costs more money", "spending more money", "saving money"), ("takes more time", "spending more time", "saving time"),
          ("needs more work", "doing more work", "saving work"))  # fmt: skip


@skill(
    "Costs and benefits", **ECONOMICS, grades=(4, 8), weight=0.8,
    lecture="""Costs are the bad things about a choice and benefits are the good things about it. Before you decide, think about what
    you give up and what you gain.""",
)
def costs_and_benefits(rng: random.Random) -> Draft:
    name, (verb, *pair), (price, more, less) = rng.choice(NAMES), rng.choice(OPTIONS), rng.choice(PRICES)
    liked, other = rng.sample(pair, 2)
    choices = (more, "having more fun", "having less fun", less)
    answer = rng.randrange(4)
    word, chosen = ("cost", "benefit", "cost", "benefit")[answer], (liked, liked, other, other)[answer]
    return Draft(
        f"{name} decides to {verb} {chosen}. What is a {word} of this choice?", choices, answer,
        f"{capital(liked)} would be more fun, but that {price}. For {chosen}, a {word} is {choices[answer]}.",
        hint=f"{name} can {verb} {pair[0]} or {pair[1]}. {name} likes {liked} more, but that {price}.",
    )


SOLD = ("kites", "hats", "cakes", "lamps", "bikes", "chairs", "boots", "toys", "tents", "drums", "books", "plants", "shirts", "clocks")
CHANGES = (
    ("More people want to buy {} than last year", "Demand rises", 0), ("Fewer people want to buy {} than last year", "Demand falls", 1),
    ("A fire destroys half of all {}", "Supply falls", 0), ("New machines make many more {}", "Supply rises", 1),
    ("Half of the factories that make {} close", "Supply falls", 0), ("Nobody thinks that {} are in fashion now", "Demand falls", 1),
    ("Three new factories start to make {}", "Supply rises", 1), ("A famous singer makes {} popular", "Demand rises", 0),
)  # fmt: skip


@skill(
    "Supply and demand", **ECONOMICS, grades=(7, 12), weight=0.8,
    lecture="""Supply is how much sellers offer and demand is how much buyers want. When demand is greater than supply there is a
    shortage and prices tend to rise. When supply is greater than demand there is a surplus and prices tend to fall.""",
)
def supply_and_demand(rng: random.Random) -> Draft:
    things, name = rng.choice(SOLD), rng.choice(NAMES)
    if rng.random() < 0.5:
        small = 10 * rng.randint(1, 4)
        large = small + 10 * rng.randint(3, 5)
        answer = rng.randrange(2)
        have, want = ((small, large), (large, small))[answer]
        choices = ("a shortage", "a surplus")
        return Draft(f"Is there a shortage or a surplus of {things}?", choices, answer,
                     f"Buyers want {want} and {name} has {have}. {('Demand', 'Supply')[answer]} is greater, so there is {choices[answer]}.",
                     hint=f"{name} has {have} {things} to sell. At this price, people want to buy {want} {things}.")
    change, effect, answer = rng.choice(CHANGES)
    choices = ("it will go up", "it will go down")
    return Draft(f"What will probably happen to the price of {things}?", choices, answer,
                 f"{effect}, and that makes {things} {('more', 'less')[answer]} expensive. As for the price, {choices[answer]}.",
                 hint=f"{name} sells {things}. {change.format(things)}.")
