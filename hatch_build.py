"""What the build takes from elsewhere, so that each fact stands in one place.

The dependencies come from requirements.txt. A wheel carries the read-only folders inside the package, where
`mmlora.paths` finds them; an editable install reads them from the repository.
"""

from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

FOLDERS = {"data": "_data", "weights": "_weights", "notebooks": "_notebooks"}


class Dependencies(MetadataHookInterface):
    def update(self, metadata):
        lines = (Path(self.root) / "requirements.txt").read_text(encoding="utf-8").splitlines()
        metadata["dependencies"] = [line for line in lines if line and not line.startswith("#")]


class Folders(BuildHookInterface):
    def initialize(self, version, build_data):
        if version == "editable":
            return
        for folder, inside in FOLDERS.items():
            for path in sorted(Path(self.root, folder).iterdir()):
                if path.name != "minisqa" and path.suffix != ".py":  # built by everyone, and the builders of the rest
                    build_data["force_include"][str(path)] = f"mmlora/{inside}/{path.name}"
