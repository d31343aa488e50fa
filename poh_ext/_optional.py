"""Import what only the experiments need, with an error that says how to get it."""

import importlib

__all__ = ["MissingPackage", "require"]


class MissingPackage(ImportError):
    """A package of the extra `experiments` could not be imported."""


def require(module: str):
    """Import and return `module`; if it is not installed, MissingPackage names the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise MissingPackage(
            f"this part of poh_ext needs {package}, which could not be imported ({error}): "
            "pip install 'poh_ext[experiments]'"
        ) from error
