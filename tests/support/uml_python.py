"""A Python with the agent in it that user `nobody` may read: such hosts run as nobody and see the machine's files."""

import importlib
import shutil
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

_NOT_NEEDED = ("test", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "site-packages", "dist-packages")
_OURS = ("brownout_agent", "brownout_protos")


def build_python(folder: Path) -> Path:
    """Copy interpreter, standard library and the agent with all that it depends on; returns the interpreter."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    base = Path(sys.base_prefix)
    packages = folder / "lib" / version / "site-packages"
    ignored = shutil.ignore_patterns(*_NOT_NEEDED, "config-*")
    shutil.copytree(base / "lib" / version, folder / "lib" / version, ignore=ignored)
    for library in (base / "lib").glob("libpython3*.so*"):
        shutil.copy2(library, folder / "lib")
    (folder / "bin").mkdir()
    python = folder / "bin" / version
    shutil.copy2((base / "bin" / version).resolve(), python)
    for found in _closure("brownout-agent").values():
        _copy(found, packages)
    for name in _OURS:
        source = Path(str(importlib.import_module(name).__file__)).parent
        shutil.copytree(source, packages / name, dirs_exist_ok=True)
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o444 | (0o111 if path.is_dir() else 0))
    return python


def _closure(name: str) -> dict[str, Distribution]:
    """A distribution and everything that it requires here."""
    found: dict[str, Distribution] = {}
    wanted = [name]
    while wanted:
        name = wanted.pop().lower()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue  # for another platform or Python
        requirements = map(Requirement, found[name].requires or ())
        wanted += [one.name for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def _copy(found: Distribution, packages: Path) -> None:
    for file in found.files or ():
        if ".." in file.parts:
            continue  # a program of its own; nobody calls it there
        target = packages / file
        target.parent.mkdir(parents=True, exist_ok=True)
        if (source := Path(str(file.locate()))).is_file():
            shutil.copy2(source, target)
