"""What is done to files, folders and disks."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAGE = 4096  # bytes; a small file system in memory fills page by page


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def damage(path: Path, rng: random.Random) -> dict:
    """Flip one bit of the file, or cut it; returns what was done."""
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content)) if content else 0
    if rng.random() < 0.6 and content:
        bit = rng.randrange(8)
        content[at] ^= 1 << bit
        path.write_bytes(content)
        return {"harm": "bit", "byte": at, "bit": bit, "size": len(content)}
    path.write_bytes(content[:at])
    return {"harm": "cut", "byte": at, "size": len(content)}


@contextmanager
def disk(folder: Path) -> Iterator[str]:
    """A file system of its own in `folder`: "tmpfs", or "RLIMIT_FSIZE" where none may be mounted and the child limits itself."""
    folder.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "faults", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        yield "RLIMIT_FSIZE"
        return
    try:
        yield "tmpfs"
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def resize(folder: Path, free: int) -> None:
    """Let the mounted folder have so many bytes free, in whole pages."""
    held = os.statvfs(folder)
    used = (held.f_blocks - held.f_bfree) * held.f_frsize
    size = used + max(PAGE, free // PAGE * PAGE)
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True, capture_output=True)


def limit_files(size: int) -> None:
    """From now on no file of this process grows beyond `size` bytes: EFBIG instead of a signal."""
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


class _Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def hostile_pickle(path: Path, mark: Path) -> None:
    """A pickle as `torch.save` writes tensors' dictionaries, with code in it: in the old format that torch still reads."""
    path.write_bytes(pickle.dumps({"weight": _Payload(mark)}, protocol=2))


def _edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _module(folder: Path, name: str, mark: Path, body: str = "") -> None:
    (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'w').close()\n{body}")


def weights_as_pickle(base: Path, mark: Path) -> None:
    (base / "model.safetensors").unlink()
    hostile_pickle(base / "pytorch_model.bin", mark)


def pickle_beside_weights(base: Path, mark: Path) -> None:
    hostile_pickle(base / "pytorch_model.bin", mark)
    hostile_pickle(base / "training_args.bin", mark)


def code_for_a_known_model(base: Path, mark: Path) -> None:
    _module(base, "modeling", mark, "class Model: pass\nclass Config: pass\n")
    automatic = {"AutoConfig": "modeling.Config", "AutoModelForImageTextToText": "modeling.Model"}
    _edit(base / "config.json", auto_map=automatic)


def code_for_an_unknown_model(base: Path, mark: Path) -> None:
    code_for_a_known_model(base, mark)
    _edit(base / "config.json", model_type="own_kind", architectures=["Model"])


def code_for_the_processor(base: Path, mark: Path) -> None:
    _module(base, "reading", mark, "class Processor: pass\nclass Tokenizer: pass\n")
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (base / name).is_file():
            _edit(base / name, auto_map={"AutoProcessor": "reading.Processor"}, processor_class="Processor")
    _edit(
        base / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["reading.Tokenizer", None]},
        tokenizer_class="Tokenizer",
    )


def code_in_the_chat_template(base: Path, mark: Path) -> None:
    escape = "{{ cycler.__init__.__globals__.os.system('touch " + str(mark) + "') }}"
    (base / "chat_template.jinja").write_text(escape + (base / "chat_template.jinja").read_text())


def adapter_as_pickle(adapter: Path, mark: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    hostile_pickle(adapter / "adapter_model.bin", mark)


def pickle_beside_adapter(adapter: Path, mark: Path) -> None:
    hostile_pickle(adapter / "adapter_model.bin", mark)
    hostile_pickle(adapter / "training_args.bin", mark)


def adapter_on_a_hostile_base(adapter: Path, mark: Path) -> None:
    """The adapter is sound; the base that it names, a folder beside it, brings code."""
    base = copied(
        Path(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]), adapter / "base"
    )
    code_for_an_unknown_model(base, mark)
    _edit(adapter / "adapter_config.json", base_model_name_or_path=str(base))


def pickles_in_the_checkpoint(checkpoint: Path, mark: Path) -> None:
    """Replace what it keeps beside the adapter by pickles, and add those that the other side would keep."""
    own = [p for p in files_of(checkpoint) if p.suffix in (".pt", ".pth", ".bin") or p.name == "optimizer.safetensors"]
    more = [checkpoint / name for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin")]
    for path in {*own, *more}:
        hostile_pickle(path, mark)


#: What is hostile in each kind of folder.
HOSTILE = {
    "base": (weights_as_pickle, pickle_beside_weights, code_for_a_known_model, code_for_an_unknown_model,
             code_for_the_processor, code_in_the_chat_template),
    "adapter": (adapter_as_pickle, pickle_beside_adapter, adapter_on_a_hostile_base),
    "checkpoint": (pickles_in_the_checkpoint,),
}  # fmt: skip


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to
