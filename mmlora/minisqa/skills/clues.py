"""What the vocabulary skill on context clues draws from."""

from __future__ import annotations

#: A rare word, its meaning, and two sentences that give the meaning away.
CLUES = (
    (
        "arid",
        "very dry",
        "The land was arid; it had not rained for years",
        "The arid soil turned to dust without any water",
    ),
    (
        "famished",
        "very hungry",
        "{0} was famished and ate four plates of rice",
        "After a day without food {0} felt famished",
    ),
    ("timid", "shy", "The timid cat hid whenever {0} came near", "{0} was too timid to speak to anyone in class"),
    (
        "gigantic",
        "very big",
        "The gigantic tree was taller than {0}'s house",
        "A gigantic whale filled the whole pool, said {0}",
    ),
    ("weary", "tired", "{0} was weary and fell asleep at once", "After ten hours of work {0} was weary and lay down"),
    (
        "furious",
        "very angry",
        "{0} was furious and shouted at the thief",
        "The furious coach of {0} yelled and stamped",
    ),
    ("rapid", "fast", "The rapid train passed {0} in one second", "{0} could not catch the rapid little dog"),
    (
        "fragile",
        "easy to break",
        "The fragile cup cracked when {0} touched it",
        "{0} wrapped the fragile glass so it would not break",
    ),
    (
        "ancient",
        "very old",
        "{0} saw an ancient coin made 2,000 years ago",
        "The ancient castle that {0} saw has stood since long ago",
    ),
    (
        "drenched",
        "very wet",
        "{0} was drenched by the rain and water ran off the coat",
        "{0} fell into the pool and was drenched",
    ),
    (
        "frigid",
        "very cold",
        "In the frigid air {0}'s water turned to ice",
        "{0} wore three coats on that frigid, snowy day",
    ),
    (
        "delighted",
        "very happy",
        "{0} was delighted and could not stop smiling",
        "The delighted winner, {0}, laughed and danced",
    ),
    (
        "filthy",
        "very dirty",
        "{0}'s boots were filthy with mud",
        "{0} scrubbed the filthy floor until the dirt was gone",
    ),
    (
        "silent",
        "without a sound",
        "The room was so silent that {0} could hear no noise",
        "{0} kept silent and did not say a word",
    ),
    (
        "generous",
        "glad to share",
        "Generous {0} gave away half of the candy",
        "{0} is generous and gives toys to other children",
    ),
    (
        "peculiar",
        "strange",
        "{0} saw a peculiar cow with blue spots",
        "Nobody had seen such a peculiar, odd hat as {0}'s",
    ),
    (
        "vanish",
        "go out of sight",
        "{0} saw the coin vanish; nobody could see it anymore",
        "The fog made the ship vanish before {0}'s eyes",
    ),
    ("gleaming", "shining", "The gleaming gold lit up {0}'s face", "{0} polished the gleaming car until it was bright"),
    (
        "reluctant",
        "not willing",
        "{0} was reluctant to swim and said no three times",
        "{0} was reluctant and did not want to go",
    ),
    (
        "scarce",
        "hard to find",
        "Water was scarce, so {0} searched all day for a cup",
        "{0} found only one of the scarce berries",
    ),
    (
        "courageous",
        "brave",
        "Courageous {0} ran into the fire to save a cat",
        "{0} was courageous and not afraid of the bear",
    ),
    (
        "crimson",
        "deep red",
        "{0}'s coat was crimson, like a ripe cherry",
        "The crimson roses of {0} were the color of blood",
    ),
)
