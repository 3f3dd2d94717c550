"""What the notebooks ask of a learner: exercises that check themselves, and a quiz at the end of each."""

from mmlora.lessons.exercises import check
from mmlora.lessons.quizzes import quiz

__all__ = ["check", "quiz"]
