"""A run, step by step or whole, on a tiny model and a folder of one's own; every step may be taken again."""

from __future__ import annotations

import errno
import json
import os
import random

import families
import pytest
import torch
from tinyvlm import picture

from mmlora import experiment, load_vlm, outcome
from mmlora.adapters.lora import AdapterError
from mmlora.encoding.prompts import target_text
from mmlora.evaluation.answering import evaluate
from mmlora.experiment import Experiment
from mmlora.files import FileError
from mmlora.problems.load import load_problems
from mmlora.reporting.page import html_report
from mmlora.reporting.record import Metrics
from mmlora.settings import Settings
from mmlora.training import checkpoint, log
from mmlora.training.log import TrainingError

COLOURS = ("red", "green", "blue", "olive")
pytestmark = pytest.mark.filterwarnings("ignore:.*generations were cut")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a tiny SmolVLM."""
    folder, vlm = tmp_path_factory.mktemp("model"), families.build("smolvlm")
    vlm.model.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    return str(folder)


def write_problems(folder, pictures: bool = True) -> str:
    """Questions as a teacher would lay them down, with and without pictures; returns the folder."""
    rng = random.Random(0)
    for split, count in (("train", 24), ("validation", 6), ("test", 8)):
        rows = []
        for number in range(count):
            left, right = rng.sample(COLOURS, 2)
            row = {"question": "Which colour is on the left?", "choices": list(COLOURS), "answer": COLOURS.index(left),
                   "solution": f"The left one is {left}.", "skill": "colours"}  # fmt: skip
            if pictures and number % 4:
                row["image"] = f"{split}-{number}.png"
                picture(left, right, (60 + 4 * number, 48)).save(folder / row["image"])
            else:
                row["hint"] = f"On the left is {left}."
            rows.append(row)
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory):
    return write_problems(tmp_path_factory.mktemp("own"))


def begin(model, data, folder, **changes) -> Experiment:
    return Experiment(Settings(model=model, data=data, **{"steps": 4, **changes}), folder)


@pytest.fixture(scope="module")
def finished(model, own_folder, tmp_path_factory):
    """A whole run, scored by likelihood on the validation split."""
    run = begin(model, own_folder, tmp_path_factory.mktemp("run"), method="likelihood", split="validation")
    run.run()
    return run


def test_a_run_records_what_it_did(finished, own_folder):
    metrics = Metrics.load(finished.folder / "metrics.json")
    assert metrics.settings == finished.settings.to_dict() and metrics.settings["data"] == own_folder
    assert metrics.scored_by == {
        "accuracy": "likelihood", "base": "likelihood", "majority": "fixed guess", "blank_image": "likelihood"
    }  # fmt: skip
    assert metrics.n_test == 6 and metrics.blank_image["n"]["Avg"] == 4 == metrics.accuracy["n"]["IMG"]
    assert metrics.samples_seen == 32 and metrics.base_model["weights"] == finished.vlm.base.weights
    assert html_report(finished.folder).is_file()


def test_what_was_trained_comes_back_from_its_folder(finished):
    again = load_vlm(finished.folder / "adapter")
    said = evaluate(again, finished.test, "likelihood", progress=False)
    assert [s.scores for s in said] == [pytest.approx(p.scores, abs=1e-4) for p in finished.predictions]
    assert [p.text for p in said] == [p.text for p in finished.predictions]


def test_controls_held_out_words_and_skills_are_in_the_record(model, own_folder, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    write_problems(data)
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    worded = [{**row, "wording": ("seen", "unseen")[i % 2], "caption": "two colours"} for i, row in enumerate(rows)]
    (data / "test.jsonl").write_text("\n".join(map(json.dumps, worded)))
    (data / "transfer.jsonl").write_text("\n".join(json.dumps({**row, "skill": "hues"}) for row in rows))
    run = begin(model, str(data), tmp_path / "run")
    metrics = run.run()
    seen, unseen = metrics.seen_wording, metrics.unseen_wording
    assert seen["n"]["Avg"] == unseen["n"]["Avg"] == 4 and list(metrics.untrained_skills["by_skill"]) == ["hues"]
    assert metrics.accuracy["n"]["Avg"] == 8 and "hues" not in metrics.accuracy["by_skill"]
    assert {name: way["n"]["Avg"] for name, way in metrics.controls.items()} == {"swapped": 6, "captions_as_text": 6}
    assert metrics.controls["captions_as_text"]["n"]["IMG"] == 0 and metrics.chance["avg"] == 25
    assert len((tmp_path / "run" / "swapped_predictions.jsonl").read_text().splitlines()) == 6
    assert "captions_as_text: " in capsys.readouterr().out
    assert Metrics.load(tmp_path / "run" / "metrics.json").controls == metrics.controls


@pytest.mark.parametrize("without", ["train", "test", "both"])
def test_data_without_pictures_is_no_accident(model, own_folder, tmp_path, without):
    """It used to end in a bare StopIteration, or after an hour before the record was written."""
    mixed = tmp_path / "data"
    mixed.mkdir()
    write_problems(mixed, pictures=without != "both")
    for split in ("train", "test"):
        if without == split:
            rows = [json.loads(line) for line in (mixed / f"{split}.jsonl").read_text().splitlines()]
            (mixed / f"{split}.jsonl").write_text("\n".join(json.dumps({**r, "image": None}) for r in rows))
    run = begin(model, str(mixed), tmp_path / "run")
    metrics = run.run()
    assert metrics.accuracy["n"]["Avg"] == 8
    assert (metrics.blank_image["n"]["Avg"] == 0) == (without != "train")
    assert metrics.blank_image["avg"] is None or without == "train"
    assert html_report(run.folder).is_file()


def test_the_figures_are_safe_before_anything_else_can_fail(model, own_folder, tmp_path, monkeypatch):
    run = begin(model, own_folder, tmp_path)
    monkeypatch.setattr(outcome, "occlusion", None)
    with pytest.raises(TypeError):
        run.run()
    assert Metrics.load(tmp_path / "metrics.json").n_test == 8
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 8


def adapter(run) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.model.parameters() if p.requires_grad])


def test_every_step_may_be_taken_again(model, own_folder, tmp_path, capsys):
    run = begin(model, own_folder, tmp_path)
    for step in (run.load_problems, run.load_model, run.baselines, run.attach, run.cache):
        step()
        step()
    fresh, base = adapter(run), run.base
    run.fit()
    once = adapter(run)
    assert not torch.equal(once, fresh)
    run.fit()
    assert torch.equal(adapter(run), once), "the second training did not begin at the same fresh adapter"
    assert "begins anew with a fresh adapter" in capsys.readouterr().out
    assert [p.name for p in tmp_path.glob("training-*")] == ["training-1"]
    assert (tmp_path / "training-1" / "log.jsonl").is_file() and (tmp_path / "log.jsonl").is_file()
    run.score()
    run.score()
    run.baselines()  # by now the adapter sits in the model: taken again, this would be no baseline
    assert run.base is base


def test_a_trained_connector_is_kept_and_comes_back(model, own_folder, tmp_path):
    run = begin(model, own_folder, tmp_path, train_connector=True, method="likelihood")
    run.run()
    assert not hasattr(run.samples, "boundary"), "nothing can be cached when the connector trains"
    assert (tmp_path / "adapter" / "trained.safetensors").is_file()
    again = load_vlm(tmp_path / "adapter")
    said = evaluate(again, run.test, "likelihood", progress=False)
    assert [s.scores for s in said] == [pytest.approx(p.scores, abs=1e-4) for p in run.predictions]
    bare = load_vlm(model)
    name, moved = next((n, p) for n, p in run.vlm.model.named_parameters() if p.requires_grad and ".lora_" not in n)
    assert not torch.equal(moved, bare.model.get_parameter(name))


def test_a_second_training_begins_at_the_published_connector(model, own_folder, tmp_path):
    run = begin(model, own_folder, tmp_path, train_connector=True)
    for step in (run.load_problems, run.load_model, run.attach, run.cache):
        step()
    run.fit()
    once = adapter(run)
    run.fit()
    assert torch.equal(adapter(run), once)


def test_missing_pictures_can_be_read_as_text(model, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    data = write_problems(tmp_path / "data")
    (tmp_path / "data" / "train-1.png").unlink()
    run = begin(model, data, tmp_path / "run", missing_images="text-only")
    run.load_problems()
    assert run.train[1].image is None and "1 of 18 pictures are missing" in capsys.readouterr().out


def test_validation_problems_are_answered_on_the_way(model, own_folder, tmp_path, capsys):
    run = begin(model, own_folder, tmp_path / "run", method="likelihood", probe_problems=5)
    for step in (run.load_problems, run.load_model, run.attach, run.cache):
        step()
    log = run.fit()
    found = [record["validation"] for record in log.records if "validation" in record]
    assert [probe["n"] for probe in found] == [5, 5, 5, 5]  # two of the five moments fall into the first of four steps
    validation = load_problems(own_folder, "validation", 5)
    said = evaluate(run.learner, validation, "likelihood", progress=False)
    assert found[-1]["correct"] == sum(answer.correct for answer in said)  # after the last step


def test_data_without_validation_problems_has_no_accuracy_on_the_way(model, tmp_path, capsys):
    write_problems(tmp_path, pictures=False)
    (tmp_path / "validation.jsonl").unlink()
    run = begin(model, str(tmp_path), tmp_path / "run", method="likelihood", probe_problems=5)
    for step in (run.load_problems, run.load_model, run.attach, run.cache):
        step()
    assert not any("validation" in record for record in run.fit().records)
    assert "no accuracy on the way: " in capsys.readouterr().out


def test_a_run_that_goes_on_counts_the_minutes_before(model, own_folder, tmp_path):
    first = begin(model, own_folder, tmp_path)
    first.load_problems()
    first.budget.add("align", 10)
    with first.budget.watch("cache"):
        pass
    again = Experiment(first.settings, tmp_path, resume=True)
    assert again.budget.to_dict()["align"] >= 10 and again.budget.elapsed() >= 10


def test_a_folder_has_one_run_and_only_a_run_goes_on(model, own_folder, tmp_path):
    begin(model, own_folder, tmp_path / "run").load_problems()
    with pytest.raises(TrainingError, match="run has a run already; go on with it"):
        begin(model, own_folder, tmp_path / "run")
    with pytest.raises(TrainingError, match="there is no folder .*none; to go on with a run, name its folder"):
        Experiment(Settings(model=model, data=own_folder), tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()


def test_what_breaks_off_is_no_base_for_baselines(model, own_folder, tmp_path, monkeypatch):
    run = begin(model, own_folder, tmp_path)
    for step in (run.load_problems, run.load_model, run.attach, run.cache):
        step()

    def broken(journal, record, *_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(log.Journal, "write", broken)
        run.fit()
    with pytest.raises(TrainingError, match="has learned already, and baselines come before; go on with this run in"):
        run.baselines()
    assert run.budget.spent["train"] > 0, "a part that broke off took its minutes too"
    run.resume = True
    run.fit()
    assert run.budget.spent["train"] == pytest.approx(run.log.seconds / 60, abs=0.01), "counted once"
    with pytest.raises(TrainingError, match="no baselines to compare with; go on with this run in a new Experiment"):
        run.score()


def stopped_after(run, steps, monkeypatch):
    """`run.fit()`, interrupted after so many steps as from a notebook's stop button."""
    original = experiment.fit

    def press(record):
        if record["step"] == steps:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(experiment, "fit", lambda *given, **named: original(*given, **named, on_step=press))
        run.fit()


def test_an_interrupted_training_cell_goes_on_when_it_is_run_again(model, own_folder, tmp_path, monkeypatch, capsys):
    runs = [begin(model, own_folder, tmp_path / name, method="likelihood") for name in ("whole", "interrupted")]
    for run in runs:
        for step in (run.load_problems, run.load_model, run.baselines, run.attach, run.cache):
            step()
    whole, run = runs
    whole.fit()
    stopped_after(run, 2, monkeypatch)
    assert "call fit() again to go on, or score() to see what was learned so far" in capsys.readouterr().out
    partly = run.score()
    assert "the model is scored as it was after step 2" in capsys.readouterr().out
    assert partly.samples_seen == 16 and Metrics.load(tmp_path / "interrupted" / "metrics.json").samples_seen == 16
    log = run.fit()
    assert "training goes on where it was interrupted; to begin it anew, call attach()" in capsys.readouterr().out
    assert [record["step"] for record in log.records] == [1, 2, 3, 4] and torch.equal(adapter(run), adapter(whole))
    assert run.score().samples_seen == 32 and "interrupted" not in capsys.readouterr().out
    assert not list((tmp_path / "interrupted").glob("training-*"))


def test_an_interrupted_training_begins_anew_with_a_fresh_adapter(model, own_folder, tmp_path, monkeypatch):
    run = begin(model, own_folder, tmp_path)
    for step in (run.load_problems, run.load_model, run.attach, run.cache):
        step()
    stopped_after(run, 1, monkeypatch)
    run.settings = Settings(**{**run.settings.to_dict(), "learning_rate": 1e-3, "targets": run.settings.targets,
                               "towers": run.settings.towers})  # fmt: skip
    with pytest.raises(checkpoint.CheckpointError, match="made with learning_rate"):
        run.fit()
    run.attach()
    assert [record["step"] for record in run.fit().records] == [1, 2, 3, 4]
    assert [p.name for p in tmp_path.glob("training-*")] == ["training-1"]


def test_an_interrupted_cache_can_be_filled_again(model, own_folder, tmp_path, monkeypatch):
    from mmlora.encoding import prefix

    run, original, calls = begin(model, own_folder, tmp_path), prefix.lower, []
    for step in (run.load_problems, run.load_model, run.attach):
        step()

    def press(*given):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return original(*given)

    monkeypatch.setattr(prefix, "lower", press)
    with pytest.raises(KeyboardInterrupt):
        run.cache()
    assert not list(tmp_path.glob("cache*"))
    run.cache()
    assert run.samples.boundary and run.fit().samples_seen == 32


def test_what_the_disk_refuses_costs_no_other_file(model, own_folder, tmp_path, capsys):
    run = begin(model, own_folder, tmp_path, method="likelihood")
    for step in (run.load_problems, run.load_model, run.baselines, run.attach, run.cache, run.fit):
        step()
    (tmp_path / "metrics.json").mkdir()  # no file can be written there
    (tmp_path / "adapter").write_text("in the way")
    with pytest.raises(
        FileError, match="metrics.json could not be written: .*metrics.json cannot be used .*newest checkpoint"
    ):
        run.score()
    assert (tmp_path / "predictions.jsonl").is_file() and (tmp_path / "examples.jsonl").is_file()
    assert load_vlm(tmp_path / "adapter").model.peft_config
    (tmp_path / "metrics.json").rmdir()
    assert run.score().n_test == Metrics.load(tmp_path / "metrics.json").n_test
    assert not [p.name for p in tmp_path.iterdir() if p.name.endswith(".part") or p.name.startswith(".")]


def test_a_full_disk_is_relieved_of_the_cache_before_anything_is_missing(
    model, own_folder, tmp_path, capsys, monkeypatch
):
    run = begin(model, own_folder, tmp_path, method="likelihood")
    for step in (run.load_problems, run.load_model, run.baselines, run.attach, run.cache, run.fit):
        step()
    original = outcome.save_adapter

    def full(*given, **named):
        if (tmp_path / "cache").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*given, **named)

    monkeypatch.setattr(outcome, "save_adapter", full)
    run.score()
    assert "the prefix cache is removed to make room" in capsys.readouterr().out
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file() and not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_made_is_a_sentence(model, own_folder, tmp_path):
    (tmp_path / "file").touch()
    for folder, reason in (
        (tmp_path / "file" / "run", "Not a directory"),
        (tmp_path / ("n" * 300), "File name too long"),
    ):
        with pytest.raises(FileError, match=reason):
            begin(model, own_folder, folder)


def test_what_the_settings_ask_for_is_what_is_trained(model, own_folder, tmp_path):
    asked = {"rank": 3, "alpha": 5, "first_layer": 3, "targets": ("q_proj",), "seed": 7, "learning_rate": 1e-4,
             "batch_size": 4, "format": "answer"}  # fmt: skip
    run = begin(model, own_folder, tmp_path, **asked)
    for step in (run.load_problems, run.load_model, run.attach, run.cache, run.fit):
        step()
    adapter, trained = run.model.peft_config["default"], checkpoint.newest(tmp_path).state["settings"]
    assert (adapter.r, adapter.lora_alpha) == (3, 5) and run.taught[0].reply == target_text(run.train[0], "answer")
    assert {
        name.split(".lora_")[0].split("layers.")[-1] for name, p in run.model.named_parameters() if p.requires_grad
    } == {"3.self_attn.q_proj"}
    assert {name: trained[name] for name in ("seed", "learning_rate", "batch_size")} == {
        name: asked[name] for name in ("seed", "learning_rate", "batch_size")
    }


def test_the_record_names_the_code_that_ran(model, own_folder, tmp_path, monkeypatch):
    states = iter([{"commit": "before", "dirty": False}, {"commit": "after", "dirty": True}])
    monkeypatch.setattr(experiment, "git_state", lambda: next(states))
    assert begin(model, own_folder, tmp_path, method="likelihood").run().git["commit"] == "before"


def test_an_adapter_is_no_base_to_begin_with(finished, own_folder, tmp_path):
    run = begin(str(finished.folder / "adapter"), own_folder, tmp_path)
    with pytest.raises(AdapterError, match="is an adapter; a run trains a fresh one: give its base"):
        run.load_model()


def test_the_reserve_for_scoring_follows_from_a_timed_trial(model, own_folder, tmp_path, monkeypatch):
    run = begin(model, own_folder, tmp_path)
    for step in (run.load_problems, run.load_model, run.attach, run.cache):
        step()
    now, asked = [0.0], []

    def answering(vlm, problems, method, **options):
        asked.append(len(problems))
        now[0] += 30  # seconds

    monkeypatch.setattr(experiment, "perf_counter", lambda: now[0])
    monkeypatch.setattr(experiment, "evaluate", answering)
    assert run.reserve() == pytest.approx(1.1 * 0.5 * (8 + 3 * 6) / 8)
    assert asked == [1, 8], "the first answer alone warms up"
