"""Import what only the experiments need, with an error that says how to get it."""

import importlib

__all__ = ["require"]


def require(module: str):
    """Import and return `module`; if it is not installed, the ImportError names the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(
            f"poh_ext.report needs {package}, which could not be imported ({error}): pip install poh_ext[experiments]"
        ) from error
