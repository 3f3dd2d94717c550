"""What was foretold is what happens (its dealings with a hub are in test_hub)."""

import copy
import json
import subprocess
import sys
from dataclasses import replace

import pytest

from mmlora import needs as module
from mmlora.adapters.lora import attach
from mmlora.models.vlm import UnknownModel
from mmlora.needs import needs
from mmlora.paths import RESULTS
from mmlora.reporting.machine import machine
from mmlora.reporting.record import Metrics
from mmlora.settings import Settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_vlm):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_vlm.model.save_pretrained(folder)
    return folder


def test_the_adapter_is_as_large_as_planned(folder, tiny_vlm):
    made = attach(copy.deepcopy(tiny_vlm.model), rank=4)
    assert needs(str(folder), settings=Settings(rank=4)).trainable == sum(
        p.numel() for p in made.parameters() if p.requires_grad
    )


def test_a_folder_needs_no_download(folder, tiny_vlm):
    found = needs(str(folder))
    assert found.download == 0
    assert 0 <= found.parameters - tiny_vlm.model.num_parameters() < 100  # the dictionary's word ids are no parameters
    assert "nothing, it is here" in str(found)


def test_weights_in_16_bits_take_half(folder):
    found = needs(str(folder))
    assert found.memory(4) - 2 * found.memory(2) == -module.TRAINED_BYTES * found.trainable


def test_four_bits_are_offered_to_large_models_only(folder):
    small = needs(str(folder))
    assert "with NF4" not in str(small)
    large = replace(small, parameters=3_000_000_000)
    saved = large.memory(2) - large.memory_nf4()
    assert saved == pytest.approx(1.4 * 3e9) and "with NF4       roughly" in str(large)


def test_minutes_come_from_a_record_of_this_machine_only(tmp_path, monkeypatch):
    record = {**Metrics.load(RESULTS / "one_hour_smolbridge.json").__dict__, "model": "smolbridge"}
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    (tmp_path / "other.json").write_text(json.dumps({"another": "kind of record"}))
    elsewhere = {**record, "machine": {**machine(), "cpu": "another", "gpu": None}, "samples_per_second": 99.0}
    Metrics(**elsewhere).save(tmp_path / "elsewhere.json")
    assert needs("smolbridge").speed is None
    Metrics(**{**record, "machine": machine(), "samples_per_second": 5.0}).save(tmp_path / "here.json")
    found = needs("smolbridge", problems=3_000)
    assert (found.speed, found.record) == (5.0, "here.json")
    assert "10 minutes for 3,000 problems (here.json: 5 samples/s)" in str(found)
    assert "has seen" in str(found) and "MiniSQA's own generator" in str(found)


def test_an_unknown_size_is_said_not_guessed():
    found = needs("smolbridge")  # its configuration is known once it is put together
    assert found.trainable is None and found.memory(2) is None
    assert "not known yet" in str(found) and "152,000,000" in str(found)


def test_an_architecture_that_transformers_lacks_is_looked_up_in_a_fresh_process(folder):
    """Nothing has registered SmolBridge there: the folder's configuration alone says whose it is."""
    program = (
        "import sys; from mmlora.needs import needs; assert 'mmlora.smolbridge.model' not in sys.modules; "
        "found = needs(sys.argv[1]); print(found.trainable, found.parameters)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    here = needs(str(folder))
    assert done.stdout.split() == [str(here.trainable), str(here.parameters)] and here.trainable > 0


def test_larger_batches_and_ranks_need_more(folder):
    base = needs(str(folder))
    assert needs(str(folder), settings=Settings(rank=32)).trainable == 2 * base.trainable
    assert (
        needs(str(folder), settings=Settings(batch_size=48)).activations
        == 48 / Settings().batch_size * base.activations
    )


def test_an_adapter_is_told_to_ask_for_its_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "maker/base"}')
    with pytest.raises(UnknownModel, match="is an adapter; a run trains a fresh one: ask for its base, maker/base"):
        needs(str(tmp_path))
