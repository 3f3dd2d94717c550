"""A record's commit is mmlora's own, or nobody's."""

from __future__ import annotations

import json
import subprocess
from types import SimpleNamespace

import pytest

from mmlora import paths
from mmlora.reporting import machine
from mmlora.reporting.machine import git_state

UNKNOWN = {"commit": None, "dirty": None}


def git(*words, cwd) -> str:
    who = ("-c", "user.name=somebody", "-c", "user.email=some@body")
    return subprocess.run(["git", *who, *words], cwd=cwd, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def stranger(tmp_path):
    """Somebody's repository with one commit, and mmlora's package somewhere in it."""
    package = tmp_path / "project" / "vendor" / "mmlora" / "mmlora"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    git("init", "-q", cwd=tmp_path / "project")
    git("add", ".", cwd=tmp_path / "project")
    git("commit", "-q", "-m", "theirs", cwd=tmp_path / "project")
    assert len(git("rev-parse", "HEAD", cwd=package)) == 40, "git finds their commit from there"
    return package


def installed_from(monkeypatch, origin: str | None):
    monkeypatch.setattr(machine, "IN_CHECKOUT", False)
    distribution = SimpleNamespace(read_text={"direct_url.json": origin}.get)
    monkeypatch.setattr(machine.metadata, "distribution", lambda name: distribution)


def test_this_checkout_has_its_commit():
    if not (paths.PACKAGE.parent / ".git").exists():
        pytest.skip("this is a copy without its history")
    dirty = bool(git("status", "--porcelain", cwd=paths.PACKAGE.parent))
    assert git_state() == {"commit": git("rev-parse", "HEAD", cwd=paths.PACKAGE.parent), "dirty": dirty}


def test_an_uncommitted_file_is_told(stranger, monkeypatch):
    root = stranger.parents[2]
    monkeypatch.setattr(machine, "IN_CHECKOUT", True)
    monkeypatch.setattr(machine, "PACKAGE", root / "mmlora")
    commit = git("rev-parse", "HEAD", cwd=root)
    assert git_state() == {"commit": commit, "dirty": False}
    (root / "new.txt").touch()
    assert git_state() == {"commit": commit, "dirty": True}


def test_a_wheel_says_nothing_of_the_repository_that_it_lies_in(stranger, monkeypatch):
    monkeypatch.setattr(machine, "PACKAGE", stranger)
    monkeypatch.chdir(stranger)
    for origin in (None, json.dumps({"url": "file:///somewhere", "dir_info": {"editable": True}})):
        installed_from(monkeypatch, origin)
        assert git_state() == UNKNOWN


def test_a_copy_inside_a_strangers_repository_does_not_take_its_commit(stranger, monkeypatch):
    monkeypatch.setattr(machine, "IN_CHECKOUT", True)
    monkeypatch.setattr(machine, "PACKAGE", stranger)
    assert git_state() == UNKNOWN


def test_installed_from_a_repositorys_address_it_has_that_commit(monkeypatch):
    installed_from(monkeypatch, json.dumps({"url": "https://x", "vcs_info": {"vcs": "git", "commit_id": "c" * 40}}))
    assert git_state() == {"commit": "c" * 40, "dirty": False}


def test_without_git_nobody_can_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "IN_CHECKOUT", True)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state() == UNKNOWN
