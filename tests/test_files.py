"""Files are whole or as they were, and what a disk refuses is one sentence."""

import errno
import os
import signal
from contextlib import contextmanager

import pytest

from mmlora.errors import MMLoraError
from mmlora.files import FileError, refusals, whole_folder, write_whole

resource = pytest.importorskip("resource")  # Windows has none


@contextmanager
def small_files(limit: int):
    """Inside, the system refuses to make any file larger than so many bytes, in the middle of a write."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_file_that_does_not_fit_leaves_the_old_one_and_nothing_else(tmp_path):
    write_whole(tmp_path / "log", "old")
    with small_files(1000), pytest.raises(OSError) as caught:
        write_whole(tmp_path / "log", b"x" * 2000)
    assert caught.value.errno == errno.EFBIG
    assert [p.name for p in tmp_path.iterdir()] == ["log"] and (tmp_path / "log").read_text() == "old"
    write_whole(tmp_path / "log", b"x" * 2000)
    assert (tmp_path / "log").read_bytes() == b"x" * 2000


def test_a_folder_that_does_not_fit_leaves_the_old_one_and_nothing_else(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "a").write_text("old")
    for _ in range(2):
        with small_files(1000), pytest.raises(OSError), whole_folder(tmp_path / "adapter") as folder:
            write_whole(folder / "a", "new")
            write_whole(folder / "b", "x" * 2000)
        assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
        assert [p.read_text() for p in (tmp_path / "adapter").iterdir()] == ["old"]
    with whole_folder(tmp_path / "adapter") as folder:
        write_whole(folder / "b", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    assert [p.name for p in (tmp_path / "adapter").iterdir()] == ["b"]


@pytest.mark.parametrize(
    "number, help",
    [
        (errno.ENOSPC, "No space left on device.*free some space"),
        (errno.EACCES, "Permission denied.*who may read and write"),
        (errno.EROFS, "Read-only file system.*another folder"),
        (errno.ENAMETOOLONG, "File name too long.*a shorter name"),
    ],
)
def test_what_the_system_says_is_told_with_the_file_and_what_helps(number, help):
    with pytest.raises(FileError, match=f"run/log cannot be used .{help}"), refusals("run"):
        raise OSError(number, os.strerror(number), "run/log")


def test_a_library_in_rust_only_words_it(tmp_path):
    with pytest.raises(FileError, match="adapter cannot be used .No space left on device.*free some space"):
        with refusals("adapter"):
            raise Exception("I/O error: No space left on device (os error 28)")


def test_errors_of_another_origin_pass():
    for error in (
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
        ValueError("3"),
        MMLoraError("said (os error 28)"),
    ):
        with pytest.raises(type(error)) as caught, refusals("run"):
            raise error
        assert caught.value is error


@pytest.mark.parametrize("name", ["ENOTCONN", "EINVAL", "EBUSY", "ENOTEMPTY", "ENODEV", "EILSEQ"])
def test_a_drive_that_is_gone_or_takes_no_such_name_is_a_sentence(name):
    """A mounted drive of Colab, a network's, a stick's."""
    number = getattr(errno, name)
    with pytest.raises(FileError, match="/drive/a cannot be used .*: .+"), refusals("what"):
        raise OSError(number, os.strerror(number), "/drive/a")
