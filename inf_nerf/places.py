"""Where runs and checkpoints lie: a folder of this machine, or of any filesystem that fsspec knows by a URI."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from inf_nerf.errors import InputError

LOCAL = ("file", "local")


@dataclass(frozen=True)
class RemotePath:
    """A file or folder behind a URI: what of :class:`pathlib.Path` reading needs; safe to use from threads."""

    system: Any  # fsspec.AbstractFileSystem
    path: str  # as the filesystem spells it

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(self.system, f"{self.path.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.system.unstrip_protocol(self.path)

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> "RemotePath":
        return RemotePath(self.system, self.path.rstrip("/").rpartition("/")[0])

    def is_file(self) -> bool:
        return self._ask(self.system.isfile)

    def is_dir(self) -> bool:
        return self._ask(self.system.isdir)

    def iterdir(self) -> Iterator["RemotePath"]:
        """What a folder holds, as far as the filesystem knew when it was first asked."""
        for entry in self._ask(self.system.ls, detail=False):
            yield RemotePath(self.system, entry.rstrip("/"))

    def read_bytes(self) -> bytes:
        return self._ask(self.system.cat_file)

    def read_text(self) -> str:
        return self.read_bytes().decode()

    def _ask(self, question: Any, **options: Any) -> Any:
        """Ask the driver; it may answer with any exception of its own, of which only a missing file is told apart."""
        try:
            return question(self.path, **options)
        except (FileNotFoundError, NotADirectoryError):
            raise
        except Exception as error:
            raise InputError(
                f"{self} cannot be read ({type(error).__name__}: {str(error).partition(chr(10))[0]}); check the "
                "address, the network and the credentials."
            ) from error


Place = Path | RemotePath
AnyPlace = TypeVar("AnyPlace", bound=Place)  # what lies in a place is a place of the same kind


def place(name: str | Place) -> Place:
    """The place that a path or URI (``s3://bucket/run``, ``memory://run``, ``file:///run``) names.

    Raises :class:`InputError` for a URI whose driver is not installed, naming the package, or is unknown.
    """
    if not isinstance(name, str):
        return name
    scheme, separator, rest = name.partition("://")
    if not separator:
        return Path(name)
    if scheme in LOCAL:
        return Path(rest)
    import fsspec.core

    try:
        system, path = fsspec.core.url_to_fs(name)
    except ImportError as error:
        missing = getattr(error.__cause__, "name", None) or scheme
        raise InputError(
            f"{name} needs the package {missing}, which is not installed; pip install {missing}."
        ) from error
    except ValueError as error:
        raise InputError(f"{name} is on no filesystem that fsspec knows ({error}); correct the address.") from error
    return RemotePath(system, path)
