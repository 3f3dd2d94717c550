"""The skills, one module a subject. Importing one registers its skills in `minisqa.core.SKILLS`."""

from mmlora.minisqa.skills import (  # noqa: F401
    biology,
    chemistry,
    earth,
    economics,
    geography,
    grammar,
    graphs,
    physics,
    vocabulary,
)
