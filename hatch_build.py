"""A wheel carries the read-only folders inside the package, where `mmlora.paths` finds them.

An editable install reads them from the repository.
"""

from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: folder → where the package keeps it, and what of it is read
FOLDERS = {
    "data": ("_data", ("assets", "drawings", "published_scienceqa.json")),
    "weights": ("_weights", ("*",)),
    "notebooks": ("_notebooks", ("*.ipynb",)),
    "results": ("_results", ("*.json", "one_hour_smolbridge")),  # notebook 05 reads the hour where no run is
}


class Folders(BuildHookInterface):
    def initialize(self, version, build_data):
        if version == "editable":
            return
        for folder, (inside, patterns) in FOLDERS.items():
            for path in sorted(path for pattern in patterns for path in Path(self.root, folder).glob(pattern)):
                build_data["force_include"][str(path)] = f"mmlora/{inside}/{path.name}"
