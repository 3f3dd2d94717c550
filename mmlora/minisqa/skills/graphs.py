"""Social science: bar graphs and line graphs of what people made, sold or counted."""

from __future__ import annotations

import random

from mmlora.minisqa.core import Draft, skill
from mmlora.minisqa.draw import COLORS, SIZE, canvas, finish, label, shade
from mmlora.minisqa.words import capital, listing

GRAPHS = {"subject": "social science", "topic": "economics", "category": "Graphs"}
#: Colours that stay apart on a small picture.
CLEAR = ("red", "yellow", "green", "blue", "purple", "orange", "black")
TOP = 8  # the highest value on a graph's scale
#: What was counted, what was done to it, and that verb's base form.
COUNTED = (
    ("books", "read", "read"), ("goals", "scored", "score"), ("trees", "planted", "plant"),
    ("cans", "collected", "collect"), ("cakes", "sold", "sell"), ("fish", "caught", "catch"), ("games", "won", "win"),
    ("letters", "mailed", "mail"), ("kites", "made", "make"), ("stamps", "found", "find"),
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
    "Interpret bar graphs",
    **GRAPHS,
    grades=(2, 6),
    lecture="""A bar graph uses bars to compare amounts. The higher the bar, the greater the amount. To read a bar,
    follow its top to the scale at the side.""",
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
        last = f"The {'highest' if kind == 'most' else 'lowest'} of these is {values[who]}, and that is {colors[who]}."
    facts = listing([f"{color} {value}" for color, value in zip(colors, values)])
    seen = f"From left to right the bars are {facts}."
    return Draft(
        question, choices, answer, f"{seen} {last}", _bars(rng, colors, values), f"{len(colors)} bars: {facts}."
    )


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
MEASURED = (
    "number of visitors", "price of bread", "number of cars", "price of milk", "number of jobs", "number of shops",
)  # fmt: skip


@skill(
    "Interpret line graphs",
    **GRAPHS,
    grades=(4, 8),
    lecture="""A line graph shows how an amount changes over time. Read it from left to right. A line that rises
    shows an increase, a line that falls shows a decrease, and a flat line shows no change.""",
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
        how = ("higher than", "lower than", "as high as")[answer]
        last = f"For {colors[who]} the end, {asked[1]}, is {how} the start, {asked[0]}: {TRENDS[answer]}."
    else:
        answer, choices = who, tuple(colors)
        more, late = rng.random() < 0.5, rng.random() < 0.5
        apart = rng.choice(TREND_ENDS["it went up"])  # a low and a high value
        asked = [apart[more == (place == who)] for place in range(2)]
        other = [rng.randint(1, TOP) for _ in colors]
        ends = list(zip(other, asked)) if late else list(zip(asked, other))
        when, word = ("at the end" if late else "at the start"), ("higher" if more else "lower")
        question = f"The lines show the {measured} in two towns. In which town was it {word} {when}?"
        last = f"{capital(when)} {asked[who]} is {word} than {asked[1 - who]}, and that is {colors[who]}."
    facts = listing(sorted(f"{color} from {start} to {end}" for color, (start, end) in zip(colors, ends)))
    return Draft(
        question, choices, answer, f"The lines are {facts}. {last}", _lines(rng, colors, ends), f"Two lines: {facts}."
    )
