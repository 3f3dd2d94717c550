"""`python -m mmlora` is the `mmlora` command."""

import sys

try:
    from mmlora.cli import main
except ModuleNotFoundError as error:
    sys.exit(
        f"mmlora: {error.name} is not installed for {sys.executable}; run: python -m pip install -r requirements.txt"
    )

main()
