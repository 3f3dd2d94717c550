"""One set of settings: what cannot be is refused by name, and the command line says the same as Python does."""

from __future__ import annotations

import json
import shlex
from dataclasses import fields
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from typer.testing import CliRunner

from mmlora import headless, settings
from mmlora.adapters import towers
from mmlora.cli import app
from mmlora.settings import Settings, SettingsError

CHANGED = (
    {},
    {
        "towers": ("vision", "language"),
        "train_connector": True,
        "first_layer": 3,
        "fused": False,
        "format": "QCM-LEA",
        "method": "official",
    },
    {"targets": ("q_proj", "v_proj"), "four_bit": True, "revision": "v1.0", "precision": "bfloat16", "side": 384},
    {
        "steps": 12,
        "probe_problems": 32,
        "align_minutes": 2.0,
        "method": "likelihood",
        "split": "validation",
        "missing_images": "text-only",
        "alpha": 8,
    },
    {
        "train_minutes": 7.5,
        "train_problems": 64,
        "test_problems": 48,
        "learning_rate": 5e-5,
        "data": "my own/folder $1",
    },
    {
        "report_to": "tensorboard",
        "model": "owner/name",
        "minutes": 5,
        "few_samples": True,
        "rank": 4,
        "batch_size": 12,
        "seed": 3,
    },
)


def test_the_rate_falls_with_the_decoders_width_unless_it_is_given():
    assert [Settings().for_width(width).learning_rate for width in (64, 576, 4608)] == [2e-3, 2e-3, 2.5e-4]
    assert Settings(learning_rate=1e-3).for_width(4608).learning_rate == 1e-3


def test_every_field_is_changed_in_one_of_these():
    assert {name for changes in CHANGED for name in changes} == {each.name for each in fields(Settings)}


@pytest.mark.parametrize(("changes", "message"), [
    ({"rnk": 4}, "no setting is called 'rnk' \\(did you mean 'rank'\\?\\); there are model, revision, data"),
    ({"xyzzy": 4}, "no setting is called 'xyzzy'; there are"),
    ({"format": "explanation_anwser"}, "format is 'explanation_anwser'; it can be answer, .*did you mean 'explanation_answer'"),
    ({"precision": "int8"}, "precision is 'int8'; it can be auto, float32, bfloat16, float16$"),
    ({"method": None}, "method is None; it can be likelihood, letter, generate"),
    ({"split": "train"}, "split is 'train'; it can be validation, test"),
    ({"missing_images": "skip"}, "missing_images is 'skip'; it can be error, text-only"),
    ({"towers": ("language", "visual")}, "no tower is called 'visual'; there are vision, connector, language"),
    ({"steps": 10, "train_minutes": 5.0}, "steps and train_minutes are both given"),
    ({"probe_problems": -1}, "probe_problems is -1; give 0 for none"),
    ({"seed": -1}, "seed is -1; give a whole number from 0 to 2,147,483,647"),
    ({"seed": 2**32}, "seed is 4294967296; give a whole number"),
    ({"format": "QCM-ALE"}, "format QCM-ALE teaches letters and method generate looks for words, .*: give method official or letter"),
    ({"method": "lmms_eval"}, "method lmms_eval counts a bare letter, which no format teaches"),
    ({"method": "official"}, "teaches words and method official looks for letters, .* give method generate, or a format .* QCM"),
])  # fmt: skip
def test_what_cannot_be_is_one_sentence(changes, message):
    with pytest.raises(SettingsError, match=message):
        Settings.of(changes)


NUMBERS = [each.name for each in fields(Settings) if each.name not in ("seed", "first_layer", "probe_problems", "align_minutes") and
           ("int" in str(each.type) or "float" in str(each.type))]  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_above_0(name):
    assert len(NUMBERS) == 10
    for value in (0, -1, float("nan")):
        with pytest.raises(SettingsError, match=f"{name} is {value}; give a number above 0"):
            Settings.of({name: value})


@pytest.mark.parametrize("name", ["seed", "first_layer", "probe_problems", "align_minutes"])
def test_a_seed_a_layer_and_no_probe_may_be_0(name):
    assert getattr(Settings.of({name: 0}), name) == 0


@pytest.mark.parametrize("changes", CHANGED)
def test_changes_give_the_settings_back(changes):
    settings = Settings.of(changes)
    assert settings.changes() == changes and Settings.of(settings.changes()) == settings
    assert Settings.of(settings.to_dict()) == settings, "also from a record, where tuples are lists"


def test_a_quick_look_at_minisqa_takes_the_base_that_knows_its_pictures():
    assert Settings.of({"minutes": 9.9}).model == "smolbridge"
    assert Settings.of({"minutes": 10}).model == Settings.of({"minutes": 5, "data": "mine"}).model == "smolbridge-world"
    assert Settings.of({"minutes": 5, "align_minutes": 2}).model == "smolbridge-world", "it is to be taught"
    assert Settings.of({"minutes": 5, "model": "smolbridge-world"}).command() == (
        "mmlora run --model smolbridge-world --minutes 5"
    )


@pytest.fixture
def captured(monkeypatch):
    """What the command line hands on, instead of running it."""
    calls = []
    monkeypatch.setattr(headless, "run", lambda settings, **how: calls.append((settings, how)))
    return calls


@pytest.mark.parametrize("changes", CHANGED)
def test_the_command_line_gives_the_settings_back(changes, captured):
    settings = Settings.of(changes)
    mmlora, *words = shlex.split(settings.command())
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert mmlora == "mmlora" and captured == [(settings, {"out": None, "resume": False})]


def test_the_command_line_goes_on_where_it_is_told_to(captured, tmp_path):
    assert CliRunner().invoke(app, ["run", "--out", str(tmp_path), "--resume"]).exit_code == 0
    assert captured == [(Settings(), {"out": tmp_path, "resume": True})]


def test_settings_know_the_towers_that_there_are():
    assert get_args(settings.Tower) == towers.TOWERS


def test_the_command_line_refuses_what_python_refuses(captured):
    for words, message in ((["--format", "poem"], "poem"), (["--rank", "four"], "--rank"), (["--rnk", "4"], "--rank")):
        result = CliRunner().invoke(app, ["run", *words])
        assert result.exit_code == 2 and message in result.output
    result = CliRunner().invoke(app, ["run", "--steps", "5", "--train-minutes", "5"])
    assert isinstance(result.exception, SettingsError) and not captured


def test_help_lists_every_setting_in_its_group():
    result = CliRunner().invoke(app, ["run", "--help"], terminal_width=250, env={"COLUMNS": "250"})
    assert result.exit_code == 0
    lines, group, found = result.output.splitlines(), "", {}
    groups = {each.metadata["group"] for each in fields(Settings)} | {"Files", "Options"}
    for line in lines:
        group = next((name for name in groups if line.startswith(("╭", "┌", "+")) and f" {name} " in line), group)
        for word in line.replace(",", " ").replace("/", " ").split():
            if word.startswith("--"):
                found.setdefault(word, group)
    for each in fields(Settings):
        assert found[f"--{each.name.replace('_', '-')}"] == each.metadata["group"], each.name
        assert each.metadata["why"] in result.output, "the reason for its default stands beside it"
    assert (found["--out"], found["--resume"]) == ("Files", "Files")


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"rank": "8"}, "rank is '8'; give a number above 0"),
        ({"towers": ()}, "towers is empty; name at least one"),
        ({"targets": []}, "targets is empty; name at least one"),
    ],
)
def test_what_is_no_number_or_nothing_is_one_sentence(changes, sentence):
    with pytest.raises(SettingsError, match=sentence):
        Settings.of(changes)


@pytest.mark.parametrize(("changes", "message"), [
    ({"minutes": "5m"}, "minutes is '5m'; give a number"),
    ({"minutes": float("inf")}, "minutes is inf; give a finite number"),
    ({"align_minutes": float("nan")}, "align_minutes is nan; give 0"),
    ({"rank": 1.5}, "rank is 1.5; give a whole number"),
    ({"train_problems": True}, "train_problems is True; give a number above 0"),
    ({"seed": "x"}, "seed is .x.; give a number"),
    ({"probe_problems": "x"}, "probe_problems is .x.; give a number"),
    ({"first_layer": -1}, "first_layer is -1; give 0"),
    ({"few_samples": "no"}, "few_samples is 'no'; give True or False"),
    ({"targets": [1]}, "targets is .*; give names"),
    ({"targets": ""}, "targets is empty"),
    ({"data": 5}, "data is 5; give a name or a path"),
])  # fmt: skip
def test_values_of_another_kind_are_one_sentence(changes, message):
    with pytest.raises(SettingsError, match=message):
        Settings.of(changes)


def test_paths_numbers_of_numpy_and_names_with_commas_are_taken_as_they_are_meant():
    """Or else a run would end in the record, which is JSON, after all that it learned."""
    changes = {
        "model": Path("a"),
        "data": Path("b"),
        "rank": np.int64(4),
        "minutes": np.float32(5),
        "targets": "q_proj, v_proj",
    }
    settings = Settings.of(changes)
    assert json.loads(json.dumps(settings.to_dict())) == settings.to_dict()
    assert settings == Settings(model="a", data="b", rank=4, minutes=5.0, targets=("q_proj", "v_proj"))
