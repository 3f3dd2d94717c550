"""Of all probes on the way the best one's adapter is kept, and said where training ended with a worse one."""

from __future__ import annotations

import errno
import json
import os

import families
import pytest
import torch
from test_experiment import adapter, begin, stopped_after, write_problems

from mmlora import load_vlm, outcome, validation
from mmlora.evaluation.scores import Prediction
from mmlora.experiment import Experiment
from mmlora.reporting.record import Metrics

pytestmark = pytest.mark.filterwarnings("ignore:.*generations were cut")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(families.save(families.build("smolvlm"), tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory):
    return write_problems(tmp_path_factory.mktemp("own"))


def prepared(model, data, folder, counts, *, resume=None):
    """A run that is ready to train, whose probes find so many right answers, one after the other, and the states they saw."""
    run = begin(model, data, folder, method="likelihood", probe_problems=5) if resume is None else resume
    for step in (run.load_problems, run.load_model, run.attach, run.cache):
        step()
    given, states = iter(counts), []

    def answer(problems, progress=True):
        states.append(adapter(run))
        right = next(given)
        return [Prediction(problem.id, problem.answer, i < right) for i, problem in enumerate(problems)]

    run._answer = answer
    return run, states


def kept_adapter(folder) -> torch.Tensor:
    loaded = load_vlm(folder / "best").model
    return torch.cat([p.detach().flatten() for name, p in loaded.named_parameters() if ".lora_" in name])


def test_the_best_probes_adapter_is_kept_and_said(model, own_folder, tmp_path, capsys):
    run, states = prepared(model, own_folder, tmp_path, (2, 4, 4, 3))
    log = run.fit()
    assert [record["validation"]["correct"] for record in log.records] == [2, 4, 4, 3]
    assert torch.equal(kept_adapter(tmp_path), states[1]) and not torch.equal(states[1], states[2])
    assert (
        "the last probe (step 4) has 3 of 5 validation problems right, the best one (step 2) had 4. The best one's 95 % interval is "
        "37.6 to 96.4 %, and the last one lies inside it, so the difference may be luck. The last state is what is scored; the best "
        "one's adapter is kept in "
    ) in capsys.readouterr().out
    card = (tmp_path / "best" / "README.md").read_text()
    assert "4 of 5 validation problems right after 2 steps" in card and "| samples seen | 16 |" in card
    names = {path.name for path in (tmp_path / "best").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json", "probe.json"} <= names
    assert torch.equal(adapter(run), states[3]), "the last state is what goes on to be scored"


def test_the_record_names_it(model, own_folder, tmp_path):
    run = begin(model, own_folder, tmp_path, method="likelihood", probe_problems=5)
    for step in (run.load_problems, run.load_model, run.baselines, run.attach, run.cache, run.fit):
        step()
    found, log = run.score().best_probe, [r for r in run.log.records if "validation" in r]
    assert Metrics.load(tmp_path / "metrics.json").best_probe == found
    best = max(log, key=lambda r: r["validation"]["correct"])
    assert (found["step"], found["correct"], found["n"]) == (best["step"], *best["validation"].values())
    assert found["folder"] == "best" and found["last"] == {"step": 4, **log[-1]["validation"]}


def test_a_run_without_probes_has_none(model, own_folder, tmp_path):
    run = begin(model, own_folder, tmp_path, method="likelihood", probe_problems=0)
    run.run()
    assert Metrics.load(tmp_path / "metrics.json").best_probe is None and not (tmp_path / "best").exists()


@pytest.mark.parametrize("after, best", [((3,), 2), ((4,), 2), ((5,), 4)])
def test_a_resumed_run_keeps_the_right_best(model, own_folder, tmp_path, monkeypatch, after, best):
    first, states = prepared(model, own_folder, tmp_path, (2, 4, 3))
    stopped_after(first, 3, monkeypatch)
    run = Experiment(first.settings, tmp_path, resume=True)
    run, later = prepared(model, own_folder, tmp_path, after, resume=run)
    run.fit()
    assert validation.kept(tmp_path)["step"] == best
    assert torch.equal(kept_adapter(tmp_path), (states + later)[best - 1])


def test_what_a_given_up_future_found_is_not_lost(model, own_folder, tmp_path, monkeypatch):
    """Killed before the next checkpoint: the step is taken again, and what was kept of it counts."""
    first, states = prepared(model, own_folder, tmp_path, (2, 4))
    stopped_after(first, 2, monkeypatch)
    newest = max(tmp_path.glob("checkpoint-*"))
    assert newest.name == "checkpoint-00000002"
    for path in newest.iterdir():  # as if the run had been killed: only the checkpoint of step 0 is there
        path.unlink()
    newest.rmdir()
    run = Experiment(first.settings, tmp_path, resume=True)
    run, _ = prepared(model, own_folder, tmp_path, (2, 4, 3, 4), resume=run)
    log = run.fit()
    assert [record["step"] for record in log.records] == [1, 2, 3, 4]
    assert validation.kept(tmp_path)["step"] == 2 and torch.equal(kept_adapter(tmp_path), states[1])


def test_a_training_that_begins_anew_has_a_best_of_its_own(model, own_folder, tmp_path):
    run, _ = prepared(model, own_folder, tmp_path, (5, 5, 5, 5, 1, 1, 2, 1))
    run.fit()
    run.fit()
    assert validation.kept(tmp_path)["correct"] == 2 and validation.kept(tmp_path / "training-1")["correct"] == 5


def test_a_disk_that_is_full_costs_the_copy_and_nothing_else(model, own_folder, tmp_path, capsys, monkeypatch):
    run, _ = prepared(model, own_folder, tmp_path, (2, 4, 4, 3))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(outcome, "save_adapter", full)
    assert len(run.fit().records) == 4 and not list(tmp_path.glob("*best*"))
    said = capsys.readouterr()
    assert "the adapter of the best probe so far cannot be kept: " in said.out + said.err


@pytest.mark.parametrize(
    "last, words",
    [(80, "inside it, so the difference may be luck"), (60, "below it, so the difference is hardly luck")],
)
def test_a_difference_within_the_interval_is_called_luck(tmp_path, last, words):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "probe.json").write_text(json.dumps({"step": 3, "correct": 84, "n": 96}))
    records = [
        {"step": 3, "validation": {"correct": 84, "n": 96}},
        {"step": 9, "validation": {"correct": last, "n": 96}},
    ]
    said = validation.said_of_best(tmp_path, records)
    assert "had 84. The best one's 95 % interval is 79.4 to 92.7 %, and the last one lies " + words in said
    assert validation.said_of_best(tmp_path, records[:1]) is None
