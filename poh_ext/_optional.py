"""Import what only an extra brings, with an error that says how to get it."""

import importlib

__all__ = ["MissingPackage", "require"]


class MissingPackage(ImportError):
    """A package of an extra could not be imported."""


def require(module: str, extra: str = "experiments"):
    """Import and return `module`; if it is not installed, MissingPackage names the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise MissingPackage(
            f"this part of poh_ext needs {package}, which could not be imported ({error}): "
            f"pip install 'poh_ext[{extra}]'"
        ) from error
