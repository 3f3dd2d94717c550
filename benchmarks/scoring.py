"""Where does the time of scoring go? A recorded run's adapter answers validation problems, by what is computed.

    python benchmarks/scoring.py        # some four minutes; writes results/speed/scoring.json

`parts` are seconds of one pass over the problems in batches; `least` what the matrix products of reading and of saying would
take at the measured peak; `saying_ms` milliseconds of one further token for so many rows: what a row costs, and what a
step costs however few there are.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from time import perf_counter
from typing import Annotated, Any
from unittest.mock import patch

import typer
from speed import matrix_peak, weights_of

from mmlora.adapters.files import load_vlm
from mmlora.encoding.prompts import asked
from mmlora.encoding.sample import encode
from mmlora.evaluation.answering import TOGETHER, evaluate
from mmlora.inference import generate, session
from mmlora.models.vlm import VLM, decoder_layers
from mmlora.paths import RESULTS
from mmlora.problems.load import load_problems
from mmlora.problems.record import Problem
from mmlora.reporting import machine

PARTS = {"encoding": (generate, "encode"), "reading": (generate, "prefill"), "joining": (generate, "concatenated"),
         "saying": (session.Session, "decode_step"), "leaving": (session.Session, "select")}  # fmt: skip
ROWS = (1, 4, 16, 64, 192)
STEPS = 12  # tokens said for `saying_ms`


@contextmanager
def watched(seconds: dict[str, float], calls: dict[str, int]) -> Iterator[None]:
    """Inside, each of `PARTS` adds its time; `reading` has the pictures in it."""

    def watch(part: str, function: Callable) -> Callable:
        def timed(*given: Any, **named: Any) -> Any:
            began = perf_counter()
            try:
                return function(*given, **named)
            finally:
                seconds[part] += perf_counter() - began
                calls[part] += 1

        return timed

    with ExitStack() as stack:
        for part, (owner, name) in PARTS.items():
            stack.enter_context(patch.object(owner, name, watch(part, getattr(owner, name))))
        yield


def step_ms(vlm: VLM, problems: list[Problem], rows: int) -> float:
    """Milliseconds of one further token for so many rows, a median."""
    with session.evaluating(vlm):
        batch = session.left_padded(vlm, [encode(vlm.processor, asked(problem)) for problem in problems[:rows]])
        out, one = session.prefill(vlm, batch, logits_to_keep=1)
        one = session.concatenated([one])
        seconds = []
        for _ in range(STEPS):
            began = perf_counter()
            out = one.decode_step(out.logits[:, -1].argmax(-1)[:, None])
            seconds.append(perf_counter() - began)
    return round(1000 * median(seconds[2:]), 1)


def main(
    run: Annotated[str, typer.Option(help="a folder of results/ with an adapter")] = "one_hour_smolbridge",
    count: Annotated[int, typer.Option(help="validation problems")] = 192,
    batch: Annotated[int, typer.Option(help="of them at a time, as a run asks")] = TOGETHER,
) -> None:
    """Answer the problems and write results/speed/scoring.json."""
    state, vlm = machine.git_state(), load_vlm(str(RESULTS / run / "adapter"))
    problems = load_problems("minisqa", "validation", count)
    tokens = sum(len(encode(vlm.processor, asked(problem))) for problem in problems)
    body, head = weights_of(vlm, len(decoder_layers(vlm.model)))
    peak = matrix_peak()
    for _ in range(2):  # in the first one kernels are prepared
        seconds, calls, began = defaultdict[str, float](float), defaultdict[str, int](int), perf_counter()
        with watched(seconds, calls):
            said = evaluate(vlm, problems, "generate", batch_size=batch, max_new_tokens=80, progress=False)
        whole = perf_counter() - began
    spoken = sum(len(vlm.processor.tokenizer(answer.text)["input_ids"]) for answer in said)
    record = {
        "run": run,
        "problems": count,
        "batch": batch,
        "problems_per_second": round(count / whole, 2),
        "parts": {**{part: round(seconds[part], 2) for part in PARTS}, "else": round(whole - sum(seconds.values()), 2)},
        "steps": calls["saying"],
        "tokens": {"read": tokens, "said": spoken},
        "matrix_peak_gflops": round(peak / 1e9),
        "least": {"reading": round(2 * body * tokens / peak, 2), "saying": round(2 * (body + head) * spoken / peak, 2)},
        "saying_ms": {str(rows): step_ms(vlm, problems, rows) for rows in ROWS},
        **machine.circumstances(state),
    }
    (RESULTS / "speed" / "scoring.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({name: record[name] for name in ("problems_per_second", "parts", "least", "saying_ms")}, indent=1))


if __name__ == "__main__":
    typer.run(main)
