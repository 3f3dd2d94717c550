"""What the build takes from elsewhere, so that each fact stands in one place.

The dependencies come from requirements.txt. A wheel carries the read-only folders inside the package, where
`mmlora.paths` finds them; an editable install reads them from the repository.
"""

from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

# data/minisqa is left out: it is built, not shipped.
SHIPPED = {"data/README.md": "_data/README.md", "data/assets": "_data/assets", "weights": "_weights", "notebooks": "_notebooks"}


class Dependencies(MetadataHookInterface):
    def update(self, metadata):
        lines = (Path(self.root) / "requirements.txt").read_text(encoding="utf-8").splitlines()
        metadata["dependencies"] = [line for line in lines if line and not line.startswith("#")]


class Folders(BuildHookInterface):
    def initialize(self, version, build_data):
        if version != "editable":
            build_data["force_include"].update({source: f"mmlora/{inside}" for source, inside in SHIPPED.items()})
