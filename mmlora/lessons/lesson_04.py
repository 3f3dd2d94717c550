"""Lesson 04's exercises and quiz."""

from __future__ import annotations

from typing import Any

from mmlora.lessons.exercises import exercise, near
from mmlora.lessons.quizzes import Question

WANTED = {"rank": 4, "first_layer": 25, "targets": ("q_proj", "v_proj")}
HIDDEN, KEYS, LAYERS = 576, 192, 5  # SmolLM2-135M's queries and values, and layers 25 to 29


@exercise(
    "04-1",
    hint="Divide the record's samples_seen by the problems that it trained on (the record's data says how many).",
    why="More than half of it was seen twice and the rest once; earlier hours went four to seven times through half as many.",
)
def epochs(answer: Any) -> bool | str:
    from mmlora.paths import RESULTS
    from mmlora.reporting.record import Metrics

    record = Metrics.load(RESULTS / "one_hour_smolbridge.json")
    problems = int(record.data.split()[1].split("/")[0])
    if near(answer, record.samples_seen / record.n_test):
        return "that divides by the test problems, which nobody trained on"
    return near(answer, record.samples_seen / problems)


@exercise(
    "04-2",
    hint="Its keys are names of the table above: rank, first_layer, targets; targets is a list of names.",
    why="The same dictionary works as CHANGES, and as options of `mmlora run`.",
)
def changes(answer: Any) -> bool | str:
    from mmlora.settings import Settings, SettingsError

    try:
        chosen = Settings.of(dict(answer))
    except SettingsError as error:
        return str(error)
    strange = sorted(set(chosen.changes()) - {*WANTED, "minutes"})
    missing = [name for name, value in WANTED.items() if getattr(chosen, name) != value]
    if strange:
        return f"the setting {strange[0]} was not asked for"
    return f"the setting {missing[0]} is {getattr(chosen, missing[0])!r}" if missing else True


@exercise(
    "04-3",
    hint="A matrix of m rows and n columns costs r (m + n). Queries are 576 x 576, values 192 x 576; how many layers?",
    why="Sixty times fewer than the recipe's. Whether it learns as well in the same time is an experiment, not a sum.",
)
def small_adapter(answer: Any) -> bool | str:
    layer = 4 * (HIDDEN + HIDDEN) + 4 * (KEYS + HIDDEN)
    if near(answer, layer, 0):
        return "that is one layer"
    return near(answer, LAYERS * layer, 0)


QUIZ = (
    Question(
        "Why may everything below the first adapter be computed once and kept?",
        (
            "It is frozen, so for the same problem it gives the same numbers in every epoch.",
            "It contributes little to the loss.",
            "bfloat16 is exact enough there.",
        ),
        0,
        "Frozen weights and the same input: the same output. With an adapter in the vision tower it would not hold.",
    ),
    Question(
        "The run is given 60 minutes. What are they spent on?",
        (
            "On training alone; scoring comes on top.",
            "On everything: data, alignment, cache, training, scoring.",
            "On as many epochs as the settings name.",
        ),
        1,
        "The budget is the wall clock's, so a faster machine takes more steps and not less time.",
    ),
    Question(
        "Why is the base model scored by likelihood and the trained one by what it says?",
        (
            "It makes the gain look larger.",
            "The base often says none of the choices, so likelihood is the kindest way to ask it.",
            "Likelihood does not work after training.",
        ),
        1,
        "The comparison errs on the base's side. Both are in the record under scored_by.",
    ),
    Question(
        "Two runs of the same recipe differ by two points on 450 problems. What is the likeliest reason?",
        (
            "One of them has a bug.",
            "Luck: the intervals are some eight points wide.",
            "The seed of the better one is good.",
        ),
        1,
        "A good seed here is no better elsewhere. To tell two recipes apart, compare them problem by problem, with several seeds.",
    ),
)
