"""The loop: order, schedule, budget, loss, and what it says when something is wrong."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load

from mmlora.adapters import lora
from mmlora.adapters.lora import AdapterError
from mmlora.training import clock, tracking
from mmlora.training import fit as training
from mmlora.training.checkpoint import newest
from mmlora.training.fit import fit
from mmlora.training.log import Journal, TrainingError
from mmlora.training.order import batches, schedule
from mmlora.training.probe import Probe
from mmlora.training.settings import TrainSettings

QUICK = replace(tiny.SETTINGS, steps=4, checkpoint_minutes=5)


# Order.


def test_an_epoch_is_every_sample_once_and_follows_from_seed_and_epoch():
    lengths = tiny.Tokens(203).lengths
    first = batches(lengths, 8, seed=3, epoch=0)
    assert sorted(i for batch in first for i in batch) == list(range(203))
    assert first == batches(lengths, 8, seed=3, epoch=0)
    assert first != batches(lengths, 8, seed=3, epoch=1) != batches(lengths, 8, seed=4, epoch=1)


def test_batches_of_alike_lengths_save_most_of_the_padding():
    lengths = tiny.Tokens(640).lengths

    def padding(made):
        return sum(max(lengths[i] for i in b) * len(b) - sum(lengths[i] for i in b) for b in made)

    unsorted = [list(range(start, start + 8)) for start in range(0, 640, 8)]
    assert padding(batches(lengths, 8, seed=0, epoch=0)) < 0.25 * padding(unsorted)


# Schedule and budget.


def test_schedule_warms_up_linearly_and_falls_like_a_cosine():
    assert [schedule(share, 0.1) for share in (0, 0.05, 0.1, 0.55, 1, 1.2)] == pytest.approx([0, 0.5, 1, 0.5, 0, 0])
    assert schedule(0.0, 0.0) == 1


class Clock:
    """Time that passes only while a sample is worked on: `pace` seconds a batch, every fifth four times that."""

    def __init__(self, monkeypatch, pace):
        self.now, self.pace, self.calls = 0.0, pace, 0
        monkeypatch.setattr(clock, "perf_counter", lambda: self.now)

    def source(self):
        source, loss = tiny.Tokens(), tiny.Tokens.loss

        def slow(model, indices):
            self.calls += 1
            self.now += self.pace * (4 if self.calls % 5 == 0 else 1)
            return loss(source, model, indices)

        source.loss = slow
        return source


@pytest.mark.parametrize("pace", [0.4, 1.3, 7.0])
def test_a_time_budget_is_kept_and_the_schedule_follows_it(monkeypatch, tmp_path, pace):
    clock = Clock(monkeypatch, pace)
    settings = TrainSettings(minutes=1, batch_size=8, warmup_share=0.1, learning_rate=1e-3)
    log = fit(tiny.adapted(), clock.source(), settings, tmp_path)
    assert 60 - 5 * pace < log.seconds <= 60, "neither late nor much too early"
    for before, record in zip([{"seconds": 0.0}, *log.records], log.records):
        middle = (before["seconds"] + record["seconds"]) / 2 / 60
        assert record["learning_rate"] == pytest.approx(1e-3 * schedule(middle, 0.1), abs=1e-3 * 4 * pace / 6)
    assert log.records[-1]["learning_rate"] < 1e-3 * schedule(1 - 6 * pace / 60, 0.1) + 1e-9


def test_a_resumed_budget_has_the_remaining_time(monkeypatch, tmp_path):
    settings = TrainSettings(minutes=1, batch_size=8, checkpoint_minutes=0)

    class Interrupted(Exception):
        pass

    def interrupt(record):
        if record["seconds"] > 40:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(tiny.adapted(), Clock(monkeypatch, 1.0).source(), settings, tmp_path, on_step=interrupt)
    clock = Clock(monkeypatch, 1.0)
    measured_anew = replace(settings, minutes=61 / 60)  # what is left for training is never the same twice
    log = fit(tiny.adapted(), clock.source(), measured_anew, tmp_path, resume=True)
    assert (
        clock.now < 21 and 56 < log.seconds <= 61 and 40 < log.seconds_before == pytest.approx(log.seconds - clock.now)
    )
    assert [r["step"] for r in log.records] == list(range(1, len(log.records) + 1))


# Loss.


def test_beside_lora_a_models_own_weights_take_a_tenth_of_the_rate(tmp_path):
    def moved(model):
        before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        (record,) = fit(model, tiny.Tokens(), replace(tiny.SETTINGS, steps=1), tmp_path / str(len(before))).records
        by_name = dict(model.named_parameters())
        changes = {name: (by_name[name] - was).abs().max().item() for name, was in before.items()}
        rate = record["learning_rate"]  # which is how far Adam's first step goes
        return {name: change / rate for name, change in changes.items()}

    both = tiny.adapted()
    norm = next(name for name, _ in both.named_parameters() if name.endswith("model.norm.weight"))
    both.get_parameter(norm).requires_grad_(True)
    found = moved(both)
    assert found.pop(norm) == pytest.approx(0.1, rel=1e-3)
    assert max(found.values()) == pytest.approx(1, rel=1e-3)
    alone = tiny.decoder().requires_grad_(False)
    alone.model.norm.weight.requires_grad_(True)
    assert moved(alone)["model.norm.weight"] == pytest.approx(1, rel=1e-3)


def test_micro_batches_change_the_memory_and_not_the_step(tmp_path):
    models = []
    for size in (None, 3):
        model = tiny.adapted(dropout=0.0)
        fit(model, tiny.Tokens(), replace(QUICK, micro_batch_size=size), tmp_path / str(size))
        models.append(dict(model.named_parameters()))
    for name in models[0]:
        torch.testing.assert_close(models[0][name], models[1][name], atol=2e-4, rtol=1e-3)


class Large(tiny.Tokens):
    """More than `room` samples at once do not fit in memory."""

    room = 2

    def loss(self, model, indices):
        if len(indices) > self.room:
            torch.empty(2**60)  # more than any machine has, so this is torch's own error
        return super().loss(model, indices)


def test_out_of_memory_halves_the_forward_pass_and_not_the_step(tmp_path, capsys):
    models = []
    for name, source, size in (("told", tiny.Tokens(), 2), ("found", Large(), None)):
        model = tiny.adapted(dropout=0.0)
        log = fit(model, source, replace(QUICK, micro_batch_size=size), tmp_path / name)
        assert log.samples_seen == QUICK.steps * QUICK.batch_size
        models.append(dict(model.named_parameters()))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    said = capsys.readouterr()
    assert (
        "from now on 4 samples" in said.out + said.err
        and "from now on 2 samples a forward pass; a step still takes 8" in said.out + said.err
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you tried to allocate"
        ),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a primitive"),
    ],
    ids=["python", "Windows", "C++", "oneDNN"],
)
def test_every_allocators_words_for_no_memory_halve_the_forward_pass(tmp_path, capsys, error):
    class Refused(tiny.Tokens):
        def loss(self, model, indices):
            if len(indices) > 4:
                raise error
            return super().loss(model, indices)

    assert fit(tiny.adapted(), Refused(), QUICK, tmp_path).samples_seen == QUICK.steps * QUICK.batch_size
    said = capsys.readouterr()
    assert "out of memory: from now on 4 samples a forward pass" in said.out + said.err


def test_an_operation_that_onednn_lacks_is_not_taken_for_no_memory(tmp_path):
    class Refused(tiny.Tokens):
        def loss(self, model, indices):
            raise RuntimeError("could not create a primitive descriptor for the matmul primitive")

    with pytest.raises(RuntimeError, match="descriptor"):
        fit(tiny.adapted(), Refused(), QUICK, tmp_path)


def test_a_loss_without_a_gradient_is_named(tmp_path):
    class Cut(tiny.Tokens):
        def loss(self, model, indices):
            total, tokens = super().loss(model, indices)
            return total.detach(), tokens

    with pytest.raises(
        TrainingError, match="the samples sample-.* depends on nothing that trains; .*'use_reentrant': False"
    ):
        fit(tiny.adapted(), Cut(), QUICK, tmp_path)


def test_a_sample_that_never_fits_ends_the_run_with_its_name(tmp_path):
    source = Large()
    source.room = 0
    with pytest.raises(TrainingError, match=r"samples sample-\d+.* do not fit in memory, 1 at a time"):
        fit(tiny.adapted(), source, QUICK, tmp_path)


def test_the_loss_is_the_mean_over_supervised_tokens_and_the_prompt_has_none(tmp_path):
    model, source = tiny.adapted(dropout=0.0), tiny.Tokens(8)
    log = fit(model, source, replace(QUICK, steps=1), tmp_path)
    record = log.records[0]
    assert record["tokens"] == sum(length - tiny.PROMPT for length in source.lengths)
    assert record["loss"] == pytest.approx(math.log(tiny.VOCABULARY), abs=0.3)
    other = tiny.Tokens(8)
    loss, _ = other.loss(tiny.adapted(dropout=0.0).eval(), list(range(8)))
    assert record["loss"] == pytest.approx(loss.item() / record["tokens"], abs=1e-5)


def test_it_learns(tmp_path):
    settings = replace(QUICK, steps=40, learning_rate=2e-2)
    records = fit(tiny.adapted(rank=16, layers=range(4)), tiny.Tokens(8), settings, tmp_path).records
    assert records[-1]["loss"] < records[0]["loss"] - 0.15


def test_frozen_towers_compute_as_in_inference(tmp_path):
    model, modes = tiny.adapted(), {}
    source = tiny.Tokens()
    loss = source.loss

    def look(model, indices):
        modes.update({name: module.training for name, module in model.named_modules()})
        return loss(model, indices)

    source.loss = look
    fit(model, source, replace(QUICK, steps=1), tmp_path)
    layer = "base_model.model.model.layers.{}.self_attn.q_proj"
    assert modes[layer.format(2) + ".lora_dropout.default"] and not modes[layer.format(2) + ".base_layer"]
    assert not modes[layer.format(1)] and not any(m.training for m in model.modules())


# Log.


def test_the_log_is_a_line_a_step_and_equals_what_is_returned(tmp_path, capsys):
    seen = []
    log = fit(tiny.adapted(), tiny.Tokens(), QUICK, tmp_path, on_step=seen.append)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == seen == log.records and len(lines) == 4
    assert lines[0]["gradient_norm_by_tower"]["language"] == pytest.approx(lines[0]["gradient_norm"], rel=1e-5)
    assert (log.samples_seen, lines[-1]["samples"]) == (32, 32)
    assert "gradient norm at step 1: language" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_log_on_a_full_disk_keeps_its_records(tmp_path):
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    log = fit(tiny.adapted(), tiny.Tokens(), QUICK, tmp_path)
    assert len(log.records) == 4


def test_a_log_that_cannot_be_opened_is_one_sentence(tmp_path):
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(TrainingError, match="log.jsonl cannot be written"):
        Journal(tmp_path).open([])


# Errors.


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({}, "exactly one"),
        ({"minutes": 1, "steps": 1}, "exactly one"),
        ({"minutes": 0}, "minutes is 0; give a number above 0"),
        ({"steps": 5, "batch_size": -1}, "batch_size is -1"),
        ({"steps": 5, "learning_rate": math.nan}, "learning_rate is nan"),
        ({"minutes": math.inf}, "minutes is inf; give a finite"),
        ({"minutes": "5"}, "minutes is '5'; give a number"),
        ({"steps": 2.5}, "steps is 2.5; give a whole number"),
        ({"steps": 5, "weight_decay": math.nan}, "weight_decay is nan"),
        ({"steps": 5, "warmup_share": 1.0}, "warmup_share is 1.0"),
    ],
)
def test_impossible_settings_are_refused(settings, sentence):
    with pytest.raises(TrainingError, match=sentence):
        TrainSettings(**settings)


def poisoned(sample, poison):
    source = tiny.Tokens()
    loss = source.loss

    def spoil(model, indices):
        total, tokens = loss(model, indices)
        return (poison(total) if sample in indices else total), tokens

    source.loss = spoil
    return source


@pytest.mark.parametrize(
    "what, poison", [("loss", lambda x: x * math.nan), ("gradient", lambda x: x + ((x - x.detach()).abs() + 0).sqrt())]
)
def test_what_is_not_finite_stops_the_run_and_spoils_nothing(tmp_path, what, poison):
    model = tiny.adapted()
    order = batches(tiny.Tokens().lengths, 8, tiny.SETTINGS.seed, 0)
    steps = []

    def remember(record):
        steps.append({n: p.detach().clone() for n, p in model.named_parameters()})

    sample = order[2][0]
    with pytest.raises(TrainingError, match=f"the {what} is not finite at step 3 .samples .*sample-{sample}") as error:
        fit(model, poisoned(sample, poison), tiny.SETTINGS, tmp_path, on_step=remember)
    assert "the checkpoint of step 2 is kept" in str(error.value)
    assert len(steps) == 2 and all(torch.equal(p, steps[-1][n]) for n, p in model.named_parameters())
    assert (tmp_path / "checkpoint-00000002").is_dir()


def test_samples_without_supervised_tokens_are_named(tmp_path):
    source = tiny.Tokens(2)
    source.loss = lambda model, indices: (model(input_ids=source.rows[0][None]).logits.sum() * 0, 0)
    with pytest.raises(TrainingError, match="no token of the samples sample-., sample-. is supervised"):
        fit(tiny.adapted(), source, QUICK, tmp_path)


def test_a_tower_without_gradient_stops_the_first_step(tmp_path):
    model = tiny.adapted()
    model.vision_tower = torch.nn.Linear(2, 2)
    with pytest.raises(AdapterError, match="the vision tower"):
        fit(model, tiny.Tokens(), QUICK, tmp_path)


class Late(tiny.Tokens):
    """Its third batch is the first with a picture, so to speak."""

    calls = 0

    def loss(self, model, indices):
        self.calls += 1
        loss, tokens = super().loss(model, indices)
        return (loss + model.vision_tower.weight.sum() if self.calls > 2 else loss), tokens


def test_a_tower_may_wait_for_the_first_picture(tmp_path):
    model = tiny.adapted()
    model.vision_tower = torch.nn.Linear(2, 2, bias=False)
    records = fit(model, Late(), QUICK, tmp_path).records
    assert [i for i, r in enumerate(records) if "gradient_norm_by_tower" in r] == [2]
    assert records[2]["gradient_norm_by_tower"]["vision"] > 0


# Half precision's scaler, as on a card without bfloat16.


@pytest.fixture
def scaled(monkeypatch):
    """`scaled(first scale)` makes accelerate keep a real scaler here, where it otherwise has one on a card only."""

    def install(scale: float):
        class OnACard(tracking.Accelerator):
            mixed_precision = "fp16"

            def __init__(self, mixed_precision, cpu):
                super().__init__(cpu=cpu)
                self.scaler, self.native_amp = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3), True

        monkeypatch.setattr(tracking, "Accelerator", OnACard)

    return install


def weights(model) -> dict:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_products_in_float16_learn_the_same(tmp_path, scaled):
    expected = fit(tiny.adapted(), tiny.Tokens(), QUICK, tmp_path / "plain").records
    scaled(2.0**16)
    records = fit(tiny.adapted(), tiny.Tokens(), QUICK, tmp_path / "scaled").records
    for name in ("gradient_norm", "loss"):
        found, wanted = [r[name] for r in records], [r[name] for r in expected]
        assert found == pytest.approx(wanted, rel=0.02) and found != wanted


def test_a_step_that_overflowed_is_skipped_and_the_scale_halved(tmp_path, scaled):
    scaled(2.0**126)
    model, seen = tiny.adapted(), []
    start = weights(model)
    records = fit(
        model, tiny.Tokens(), replace(QUICK, steps=12), tmp_path, on_step=lambda _: seen.append(weights(model))
    ).records
    skipped = [r["gradient_norm"] is None for r in records]
    first = skipped.index(False)
    assert 0 < first < 10 and all(torch.equal(p, seen[first - 1][name]) for name, p in start.items())
    assert not all(torch.equal(p, seen[first][name]) for name, p in start.items())
    assert all(map(math.isfinite, records[first]["gradient_norm_by_tower"].values()))
    assert not any("gradient_norm_by_tower" in r for r in records[:first])


class Broken(tiny.Tokens):
    """The gradient of the root of nothing is infinite at every scale."""

    def loss(self, model, indices):
        loss, tokens = super().loss(model, indices)
        return loss + (loss - loss.detach()).abs().sqrt(), tokens


def test_a_gradient_that_no_scale_mends_ends_the_run(tmp_path, scaled):
    scaled(4.0)
    with pytest.raises(TrainingError, match="the gradient is not finite at step 4"):
        fit(tiny.adapted(), Broken(), replace(QUICK, steps=100), tmp_path)


def test_the_scale_is_resumed(tmp_path, scaled, one_thread):
    def stop(record):
        if record["step"] == 7:
            raise KeyboardInterrupt

    scaled(2.0**126)
    settings, whole, halves = replace(QUICK, steps=12, checkpoint_minutes=0), tiny.adapted(), tiny.adapted()
    fit(whole, tiny.Tokens(), settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(halves, tiny.Tokens(), settings, tmp_path / "halves", on_step=stop)
    fit(halves, tiny.Tokens(), settings, tmp_path / "halves", resume=True)
    assert all(torch.equal(p, halves.get_parameter(name)) for name, p in weights(whole).items())
    kept = [newest(tmp_path / name).files["scaler.json"] for name in ("whole", "halves")]
    assert kept[0] == kept[1]


# On another machine.


def interrupted(folder, step: int = 2):
    """A run of four steps that was closed after one of them."""

    def stop(record):
        if record["step"] == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tiny.adapted(), tiny.Tokens(), replace(QUICK, checkpoint_minutes=0), folder, on_step=stop)


def goes_on(folder, capsys, model=None) -> str:
    """What the rest of that run says of its beginning."""
    capsys.readouterr()
    log = fit(model or tiny.adapted(), tiny.Tokens(), replace(QUICK, checkpoint_minutes=0), folder, resume=True)
    assert [record["step"] for record in log.records] == [1, 2, 3, 4]
    said = capsys.readouterr()
    (line,) = [line for line in (said.out + said.err).splitlines() if line.startswith("resumed from")]
    return line


def test_a_run_goes_on_in_other_numbers_and_says_so(tmp_path, numbers, capsys):
    interrupted(tmp_path / "same")
    assert goes_on(tmp_path / "same", capsys) == "resumed from checkpoint-00000002 after 0.0 minutes"
    interrupted(tmp_path / "other")
    interrupted(tmp_path / "both")
    numbers("bfloat16")
    end = ": the end will differ in its last digits from an uninterrupted run"
    assert goes_on(tmp_path / "other", capsys) == (
        f"resumed from checkpoint-00000002 after 0.0 minutes; products in float32 before, bfloat16 from now on{end}"
    )
    halves = lora.attach(tiny.decoder().to(torch.bfloat16), rank=4, layers=(2, 3), dropout=0.1)
    assert goes_on(tmp_path / "both", capsys, halves) == (
        "resumed from checkpoint-00000002 after 0.0 minutes; products in float32 before, bfloat16 from now on, weights in "
        f"float32 before, bfloat16 from now on{end}"
    )


def test_a_scale_is_begun_where_none_was_kept_and_left_where_none_is_needed(tmp_path, scaled, capsys, monkeypatch):
    interrupted(tmp_path)
    assert "scaler.json" not in newest(tmp_path).files
    scaled(2.0**16)
    assert goes_on(tmp_path, capsys).startswith("resumed from checkpoint-00000002")
    assert json.loads(newest(tmp_path).files["scaler.json"])["scale"] >= 2.0**16
    monkeypatch.undo()  # what `scaled` did
    assert goes_on(tmp_path, capsys).startswith("resumed from checkpoint-00000004")


def test_what_an_interrupted_step_left_behind_is_not_learned(tmp_path):
    clean, soiled = tiny.adapted(), tiny.adapted()
    for parameter in soiled.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, math.nan)
    for model, name in ((clean, "clean"), (soiled, "soiled")):
        fit(model, tiny.Tokens(), QUICK, tmp_path / name)
    assert all(torch.equal(one, other) for one, other in zip(clean.parameters(), soiled.parameters()))


def test_a_gradient_is_clipped_to_the_norm_that_is_asked_for(tmp_path):
    settings = replace(QUICK, steps=1, clip_norm=1e-3)
    (record,) = fit(tiny.adapted(), tiny.Tokens(), settings, tmp_path).records
    moments = load(newest(tmp_path).files["optimizer.safetensors"])
    first = torch.stack([moment.norm() for name, moment in moments.items() if name.endswith("exp_avg")]).norm()
    assert record["gradient_norm"] > 1e-2 and first == pytest.approx(0.1 * 1e-3, rel=1e-3)  # Adam's: a tenth is new


def test_the_training_set_is_encoded_before_the_first_step_is_timed(tmp_path, monkeypatch):
    class Encoded(tiny.Tokens):
        @property
        def lengths(self):
            asked.append("encoded")
            return self.known

        @lengths.setter
        def lengths(self, known):
            self.known = known

    asked: list[str] = []
    data, step = Encoded(), training._Run.step
    asked.clear()
    monkeypatch.setattr(training._Run, "step", lambda run: asked.append("step") or step(run))
    fit(tiny.adapted(), data, QUICK, tmp_path)
    assert asked == ["encoded", *4 * ["step"]]


def test_nothing_to_train_and_nothing_to_train_on(tmp_path):
    with pytest.raises(TrainingError, match="attach an adapter first"):
        fit(tiny.decoder().requires_grad_(False), tiny.Tokens(), QUICK, tmp_path)
    with pytest.raises(TrainingError, match="no samples"):
        fit(tiny.adapted(), tiny.Tokens(0), QUICK, tmp_path)


def test_an_earlier_run_is_not_overwritten(tmp_path):
    fit(tiny.adapted(), tiny.Tokens(), QUICK, tmp_path)
    with pytest.raises(TrainingError, match="of an earlier run; resume it or choose another folder"):
        fit(tiny.adapted(), tiny.Tokens(), QUICK, tmp_path)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    first = fit(tiny.adapted(), tiny.Tokens(), QUICK, tmp_path)
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    again = fit(tiny.adapted(), tiny.Tokens(), QUICK, tmp_path, resume=True)
    assert again.records == first.records
    assert files == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


# Answers on the way.


class Asked:
    """A probe's measure that notes after how many steps it was asked."""

    def __init__(self, model, took: float = 0.0, clock=None):
        self.at, self.model, self.took, self.clock = [], model, took, clock

    def __call__(self) -> dict:
        self.at.append(sum(p.abs().sum().item() for p in self.model.parameters() if p.requires_grad))
        if self.clock:
            self.clock.now += self.took
        self.model.eval()
        return {"correct": len(self.at), "n": 10}


def test_a_probe_is_taken_at_its_moments_and_changes_nothing(tmp_path):
    model, other = tiny.adapted(), tiny.adapted()
    asked = Asked(model)
    settings = replace(tiny.SETTINGS, steps=20)
    probed = fit(model, tiny.Tokens(), settings, tmp_path / "probed", probe=Probe(asked, (0.1, 0.5, 0.95)))
    plain = fit(other, tiny.Tokens(), settings, tmp_path / "plain")
    found = {record["step"]: record["validation"] for record in probed.records if "validation" in record}
    assert found == {n: {"correct": i, "n": 10} for i, n in enumerate((2, 10, 19), start=1)}
    assert len(set(asked.at)) == 3  # of the model as it was then
    assert [record["loss"] for record in probed.records] == [record["loss"] for record in plain.records]
    assert json.loads((tmp_path / "probed" / "log.jsonl").read_text().splitlines()[9])["validation"] == found[10]


def test_a_probes_time_counts(monkeypatch, tmp_path):
    clock = Clock(monkeypatch, 1.0)
    model = tiny.adapted()
    asked = Asked(model, 20.0, clock)
    settings = replace(tiny.SETTINGS, steps=None, minutes=2)
    log = fit(model, clock.source(), settings, tmp_path, probe=Probe(asked, (0.1, 0.5)))
    assert len(asked.at) == 2 and 100 < log.seconds <= 120
    assert log.records[-1]["step"] < 60  # of some 75 without


def test_a_resumed_run_takes_the_probes_that_are_left(tmp_path):
    shares, settings = (0.2, 0.4, 0.9), replace(tiny.SETTINGS, steps=10, checkpoint_minutes=0)

    def stop(record):
        if record["step"] == 5:
            raise KeyboardInterrupt

    model = tiny.adapted()
    with pytest.raises(KeyboardInterrupt):
        fit(model, tiny.Tokens(), settings, tmp_path, on_step=stop, probe=Probe(Asked(model), shares))
    model = tiny.adapted()
    log = fit(model, tiny.Tokens(), settings, tmp_path, resume=True, probe=Probe(Asked(model), shares))
    assert [r["step"] for r in log.records if "validation" in r] == [2, 4, 9]
