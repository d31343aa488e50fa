"""What the programs of this folder share: they run from an installed poh_ext, or from the checkout they lie in."""

import importlib.util
import sys
from pathlib import Path


def start(script: str) -> None:
    """Run the benchmark of a script, and exit with its code.

    It is 2 where torch is missing, or POH_EXT_BACKEND asks for what there is not.
    """
    if importlib.util.find_spec("poh_ext") is None:  # not installed: use the checkout this file lies in
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    try:
        from poh_ext.training.cli import PROGRAMS, main
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    checkout, package = Path(__file__).resolve().parents[1], Path(sys.modules["poh_ext"].__file__).resolve().parents[1]
    if package != checkout and (checkout / "poh_ext" / "__init__.py").is_file():
        print(f"using the poh_ext that is installed in {package}, not the sources of {checkout}", file=sys.stderr)
    name = Path(script).name
    sys.exit(main(PROGRAMS[name], program=name))
