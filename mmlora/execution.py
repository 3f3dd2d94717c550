"""Executing a notebook with papermill: signals are passed on to its kernel, and its file is never half-written."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from mmlora.files import FileError, refusals, write_whole

if TYPE_CHECKING:
    from nbformat import NotebookNode

#: Ctrl-C, what is sent before a machine is shut down, and what a closing terminal sends; Windows lacks SIGHUP.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
GRACE = 60.0  # seconds that an interrupted cell has for saving; then its kernel is killed


class Stopped(Exception):
    """Ends a notebook between two cells."""


class Stop:
    """Inside, the first signal interrupts the running cell and no other cell begins; later signals are ignored."""

    def __init__(self) -> None:
        self.asked: int | None = None  # the signal that came
        self.kernel: Any = None  # its manager, once there is one
        self.before: dict[int, Any] = {}
        self.end = threading.Timer(GRACE, self._end)

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            for number in SIGNALS:
                if signal.getsignal(number) not in (None, signal.SIG_IGN):  # as SIGHUP is under nohup
                    self.before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self.before.items():
            signal.signal(number, before)
        self.end.cancel()

    def _take(self, number: int, _: FrameType | None) -> None:
        if self.asked is not None:
            return
        self.asked = number
        with suppress(OSError):
            os.write(2, b"\nstopping; what was learned is being saved\n")  # print may be what was interrupted
        self.end.daemon = True
        self.end.start()
        if process := self._process():
            if os.name == "nt":
                from jupyter_client.win_interrupt import send_interrupt

                send_interrupt(process.win32_interrupt_event)
            else:
                process.send_signal(signal.SIGINT)

    def _process(self) -> Any:
        return getattr(getattr(self.kernel, "provisioner", None), "process", None)

    def _end(self) -> None:
        if process := self._process():
            process.kill()

    def between_cells(self, **_: Any) -> None:
        """nbclient's hook: raises `Stopped` once no other cell may begin."""
        if self.asked is not None:
            raise Stopped

    def manager(self) -> type:
        """A class of kernel managers for nbclient, whose only instance is kept in `kernel` for signals."""
        from ipykernel.kernelspec import get_kernel_dict
        from jupyter_client.kernelspec import KernelSpec
        from jupyter_client.manager import AsyncKernelManager

        class Manager(AsyncKernelManager):
            def __init__(manager, **named: Any) -> None:
                super().__init__(**named)
                manager._kernel_spec = KernelSpec(**get_kernel_dict())  # another Python may be installed as "python3"
                self.kernel = manager

        return Manager


class Screen:
    """A stream that ignores write errors, so that a full disk or a closed pipe does not end a run."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError):
            self.stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self.stream.flush()


class Writer:
    """papermill's handler for one file, which is never half-written. A write error is printed once and does not end the run."""

    def __init__(self) -> None:
        self.refused: FileError | None = None  # the error of the last try

    def write(self, content: str, path: str) -> None:
        try:
            with refusals(path):
                write_whole(Path(path), content)
            self.refused = None
        except FileError as error:
            if self.refused is None:
                print(f"the executed notebook is not written: {error}; the run goes on", flush=True)
            self.refused = error

    def pretty_path(self, path: str) -> str:
        return path


def execute(
    notebook: Path, executed: Path, parameters: dict[str, Any], stop: Stop, out: TextIO, err: TextIO
) -> NotebookNode:
    """The notebook with its outputs, written to `executed` on the way. Raises what papermill and nbclient raise, or `Stopped`."""
    import papermill
    from papermill.iorw import papermill_io

    papermill_io.register(str(executed), Writer())
    return papermill.execute_notebook(
        _literal(notebook),
        _literal(executed),
        progress_bar=False,
        kernel_name="python3",
        parameters=parameters,
        stdout_file=Screen(out),
        stderr_file=Screen(err),
        on_cell_start=stop.between_cells,
        kernel_manager_class=stop.manager(),
    )


def _literal(path: Path) -> str:
    """The path with its braces doubled, since papermill reads what is in braces as a parameter's name."""
    return str(path).replace("{", "{{").replace("}", "}}")
