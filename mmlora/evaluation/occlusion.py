"""What a model looked at: which parts of a picture its words depend on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from mmlora.encoding.prompts import asked
from mmlora.encoding.sample import reply_tokens
from mmlora.evaluation.answering import EvaluationError
from mmlora.evaluation.scores import Prediction
from mmlora.inference.likelihood import log_likelihoods
from mmlora.inference.session import evaluating
from mmlora.models.memory import in_parts
from mmlora.models.vlm import VLM
from mmlora.problems.pictures import rgb
from mmlora.problems.record import Problem


def occlusion(vlm: VLM, problem: Problem, prediction: Prediction, grid: int = 8, batch_size: int = 16) -> np.ndarray:
    """What the model looked at: (grid, grid) falls in the log-likelihood of `prediction.text`, in nats.

    Cell (row, column) is the log-likelihood with the whole picture minus the one with a grey patch over that cell
    (occlusion maps: Zeiler and Fergus 2014, arXiv 1311.2901). Raises `EvaluationError` without a picture.
    """
    if problem.image is None:
        raise EvaluationError(f"problem {problem.id} has no picture to cover; choose one with an image")
    whole, picture = asked(problem), rgb(problem.image)
    patched = [_covered(picture, row, column, grid) for row in range(grid) for column in range(grid)]
    copies = [whole, *(replace(whole, pictures=(image,)) for image in patched)]
    text = reply_tokens(vlm.processor, prediction.text)
    scores = []
    with evaluating(vlm):
        for _, rows in in_parts(lambda part: log_likelihoods(vlm, part, [[text]] * len(part)), copies, batch_size):
            scores += [row[0] for row in rows]
    return scores[0] - np.array(scores[1:]).reshape(grid, grid)


def _covered(image: Image.Image, row: int, column: int, grid: int) -> Image.Image:
    copy, (width, height) = image.copy(), image.size
    box = (column * width // grid, row * height // grid, (column + 1) * width // grid, (row + 1) * height // grid)
    copy.paste((128, 128, 128), box)
    return copy
