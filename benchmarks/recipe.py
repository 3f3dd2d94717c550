"""One row of docs/recipe.md: train with one recipe for a fixed time, score, write results/recipe/NAME.json.

    python benchmarks/recipe.py shipped
    python benchmarks/recipe.py rank-4 --rank 4
    python benchmarks/recipe.py answer-only --format answer --method likelihood

Every row has the same problems, the same seed and the same minutes of training; what a recipe needs besides (its cache,
its scoring) is recorded next to its accuracy. Run rows one at a time: two at once measure each other.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from safetensors.torch import load_file, save_file

from mmlora.adapters.lora import attach
from mmlora.adapters.towers import towers
from mmlora.budget import Budget
from mmlora.encoding.prefix import PrefixCache
from mmlora.encoding.samples import Samples
from mmlora.evaluation.answering import evaluate
from mmlora.evaluation.controls import blanked, majority_class
from mmlora.evaluation.scores import score
from mmlora.minisqa.dataset import build
from mmlora.models.vlm import VLM, base_model, load_vlm
from mmlora.paths import MINISQA, RESULTS
from mmlora.problems.load import load_problems
from mmlora.reporting.record import Metrics
from mmlora.smolbridge.assemble import CONNECTOR, smolbridge
from mmlora.training.fit import fit
from mmlora.training.settings import TrainSettings

SIZES = {"train": 1500, "test": 300}  # large enough to rank recipes ten points apart, small enough to try many


def fewer_tokens(connector: Path, tokens: int, folder: Path) -> Path:
    """A connector that says only its first `tokens` words; they come in reading order."""
    tensors = load_file(connector)
    keep = tokens * len(tensors["connector.word_ids"])
    for name in ("connector.write.weight", "connector.write.bias"):
        tensors[name] = tensors[name][:keep].contiguous()
    save_file(tensors, folder / "connector.safetensors")
    return folder / "connector.safetensors"


def main(
    name: str, format: str = "explanation_answer", method: str = "generate", rank: int = 16, lr: float = 2e-3,
    first_layer: Annotated[int, typer.Option(help="LoRA begins here")] = 15,
    tokens: Annotated[int, typer.Option(help="visual tokens, of the connector's 24")] = 24,
    tune_connector: Annotated[bool, typer.Option(help="train the connector too: nothing can be cached then")] = False,
    batch_size: int = 8, minutes: float = 3.0, seed: int = 0,
):
    """Measure one recipe and write results/recipe/NAME.json."""
    budget = Budget(60)
    with budget.watch("data"):
        folder = build(MINISQA / f"{SIZES['train']}-{SIZES['test']}", sizes=SIZES)
        train, test = (load_problems(folder, split) for split in SIZES)
    work = Path(tempfile.mkdtemp(prefix="recipe-"))
    connector = fewer_tokens(CONNECTOR, tokens, work) if tokens < 24 else CONNECTOR
    vlm = replace(load_vlm(str(smolbridge(connector))), name="smolbridge")
    base = score(test, evaluate(vlm, test, "likelihood"))
    layers = range(first_layer, vlm.model.config.text_config.num_hidden_layers)
    model = attach(vlm.model, rank=rank, layers=layers, seed=seed)
    settings = TrainSettings(minutes=minutes, learning_rate=lr, batch_size=batch_size, seed=seed)
    base_model(model).model.connector.requires_grad_(tune_connector)
    try:
        with budget.watch("cache"):
            samples = Samples(vlm, train, format)
            source = samples if tune_connector else PrefixCache.build(model, samples, work / "cache")
        with budget.watch("train"):
            log = fit(model, source, settings, work)
    finally:
        shutil.rmtree(work)
    trained = VLM(vlm.name, model, vlm.processor)
    with budget.watch("score"):
        scores = score(test, evaluate(trained, test, method, batch_size=32))
        blank = score(blanked(test), evaluate(trained, blanked(test), method, batch_size=32))
    target = RESULTS / "recipe" / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    Metrics(
        accuracy=scores.to_dict(), base=base.to_dict(), majority=score(test, majority_class(test, train)).to_dict(),
        blank_image=blank.to_dict(), n_test=len(test), minutes=budget.to_dict(), seed=seed,
        samples_per_second=round(log.samples_per_second, 2), samples_seen=log.samples_seen,
        trainable_parameters=towers(model).trainable, model=vlm.name, data=f"MiniSQA {len(train)}/{len(test)}, seed 0",
        settings={"name": name, "format": format, "scored_by": method, "rank": rank,
                  "visual_tokens": vlm.model.config.visual_tokens, "connector_trained": tune_connector,
                  "layers": [layers[0], layers[-1]], **asdict(settings)},
    ).save(target)
    print(f"{name}: {scores.accuracy} {scores.ci95}, IMG {scores.columns['IMG'].accuracy}, blank {blank.accuracy}, "
          f"{log.samples_per_second:.1f} samples/s, score {budget.spent['score']:.1f} min -> {target}")
    for skill, share in sorted(scores.by_skill.items(), key=lambda item: item[1].correct / item[1].n):
        print(f"  {share.correct:3d}/{share.n:3d}  {skill}")


if __name__ == "__main__":
    typer.run(main)
