"""Two processes are one run: the same losses, one cache, one set of answers, one checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import families
import pytest
import together
import torch
from test_experiment import write_problems

from mmlora.adapters.files import load_adapter
from mmlora.evaluation.answering import evaluate
from mmlora.models import processes
from mmlora.models.vlm import load_base
from mmlora.reporting.record import Metrics
from mmlora.training import checkpoint

TESTS = Path(__file__).parent
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no processes")


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # what `accelerate launch --use_fsdp` sets


def launch(name: str, folder: Path, count: int = 2, **env: str) -> subprocess.CompletedProcess:
    """As `accelerate launch` starts processes on cards: by torchrun. On processors it asks for MPI, which few have."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count),
               str(TESTS / "together.py"), name, str(folder)]  # fmt: skip
    paths = os.pathsep.join(map(str, (TESTS, TESTS.parent)))
    env = {**os.environ, "PYTHONPATH": paths, **env}
    return subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=300
    )  # one that waits for ever fails


def together_do(name: str, folder: Path, count: int = 2, **env: str) -> tuple:
    """What each of the processes found, and what was said."""
    done = launch(name, folder, count, **env)
    assert done.returncode == 0, done.stderr[-3000:]
    return *(json.loads((folder / f"{name}-{i}.json").read_text()) for i in range(count)), done.stdout + done.stderr


def test_fifty_steps_have_the_losses_of_one_process(tmp_path, one_thread):
    one = together.losses(tmp_path, "alone")
    first, second, said = together_do("fifty", tmp_path)
    assert first == second and first == pytest.approx(one, abs=1e-4)
    assert first[-1] < first[0]
    ours, theirs = ((tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("run", "alone"))
    for key in ("samples", "tokens", "learning_rate"):
        assert [json.loads(line)[key] for line in ours] == [json.loads(line)[key] for line in theirs]


def test_a_run_of_two_goes_on_bit_for_bit_and_with_one_says_what_changes(tmp_path):
    whole, _, _ = together_do("with_dropout", tmp_path)
    newest = max((tmp_path / "dropout").glob("checkpoint-*"))
    for path in [newest, *(p for p in (tmp_path / "dropout").glob("checkpoint-*") if p.name > "checkpoint-00000011")]:
        if path.exists():
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    resumed, _, said = together_do("with_dropout", tmp_path)
    assert resumed == whole and "resumed from checkpoint-00000011 after" in said and "processes" not in said
    alone, said = together_do("with_dropout", tmp_path, 1)
    assert "processes in 2 before, 1 from now on" in said and len(alone) == len(whole)


def test_a_process_that_dies_ends_the_run_and_its_last_checkpoint_is_whole(tmp_path):
    done = launch("dies", tmp_path)
    assert done.returncode != 0 and not list(tmp_path.glob("dies-*.json"))
    assert "mmlora: ProcessLost: another process of this run has ended" in done.stderr and "--resume" in done.stderr
    assert checkpoint.newest(tmp_path / "dies").state["step"] in (3, 4)
    first, second, _ = together_do("goes_on", tmp_path)
    assert len(first) == 12 and first == second


def test_a_run_by_two_leaves_one_report_and_no_group(tmp_path):
    """A process that closes down within its group may be aborted, and the run is then taken for a failed one."""
    families.save(families.build("smolvlm"), tmp_path / "model")
    (tmp_path / "data").mkdir()
    write_problems(tmp_path / "data")
    (tmp_path / "data" / "validation.jsonl").unlink()  # no process may wait for another at what is not there
    first, second, said = together_do("whole_run", tmp_path)
    assert "no accuracy on the way" in said
    assert not first and not second and said.count(f"report    {tmp_path / 'run' / 'report.html'}") == 1
    assert Metrics.load(tmp_path / "run" / "metrics.json").n_test == 8 and (tmp_path / "run" / "report.html").is_file()


def test_the_cache_is_built_in_shares(tmp_path):
    (tmp_path / "two").mkdir()
    first, second, said = together_do("prefix", tmp_path / "two")
    alone = json.loads(json.dumps(together.prefix(tmp_path)))
    assert first == second and first["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert (first["shape"], first["ids"]) == (alone["shape"], alone["ids"])
    two, one = ((folder / "cache" / "hidden").read_bytes() for folder in (tmp_path / "two", tmp_path))
    assert len(two) == len(one) and sorted(p.name for p in (tmp_path / "two" / "cache").iterdir()) == [
        "hidden", "manifest.json", "rows.safetensors"
    ]  # fmt: skip


def test_answers_come_from_shares_in_order(tmp_path):
    first, second, _ = together_do("answers", tmp_path)
    alone = together.answers(tmp_path)
    assert first == second and [a[:2] for a in first] == [a[:2] for a in alone]
    for one, other in zip(first, alone):
        assert one[2] == pytest.approx(other[2], abs=1e-4)


def test_sharded_weights_learn_the_same_and_give_a_whole_adapter(tmp_path, one_thread):
    families.save(families.build("smolvlm"), tmp_path / "model")
    one = together.spread(tmp_path)
    first, second, said = together_do("spread", tmp_path, **FSDP)
    assert first["held"] + second["held"] == one["held"] and 0.4 < first["held"] / one["held"] < 0.6
    assert first["losses"] == second["losses"] == pytest.approx(one["losses"], abs=1e-4)
    assert first["before"] == second["before"] == one["before"] and first["losses"][-1] < first["losses"][0]
    assert said.count("weights are spread over 2 processes: layers take the plain path, nothing is cached") == 1
    vlm = load_base(tmp_path / "model")
    ours = vlm.with_model(load_adapter(vlm.model, tmp_path / "adapter-2"))
    for answer, theirs, alone in zip(evaluate(ours, together.PROBLEMS[:5]), first["scores"], one["scores"]):
        assert answer.scores == pytest.approx(theirs, abs=1e-4)
        assert answer.scores == pytest.approx(alone, abs=1e-2)


@pytest.mark.parametrize("how", [{"FSDP_VERSION": "1"}, {"FSDP_OFFLOAD_PARAMS": "true"}])
def test_other_ways_to_shard_are_refused(monkeypatch, how):
    for name, value in {**FSDP, **how}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(processes.ShardingError, match="launch with --fsdp_version 2 --fsdp_offload_params false"):
        processes.shard([torch.nn.Linear(2, 2)])


def test_alone_nothing_is_shared():
    assert (processes.count(), processes.index(), processes.first()) == (1, 0, True)
    assert processes.mine([3, 1, 2]) == processes.together([3, 1, 2]) == [3, 1, 2]
    parameter = torch.nn.Parameter(torch.ones(2))
    assert processes.add_up([parameter], 2.5, 3) == [2.5, 3] and parameter.grad is None
    assert processes.agreed(0.5, True) == [0.5, True] and processes.said("word") == "word"
