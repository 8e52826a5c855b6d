"""Packages that only some exports need."""

from collections.abc import Iterator
from contextlib import contextmanager

from inf_nerf.errors import InputError


@contextmanager
def needed_for(what: str) -> Iterator[None]:
    """Imports in the body are of packages of the extra ``export``; one that is missing is an :class:`InputError`."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"{what} needs the package {error.name}, which is not installed; pip install 'inf-nerf[export]'."
        ) from error
