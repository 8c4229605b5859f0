"""Folders that others name: whether one lies below another, and a descriptor of just the one that was named."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def is_below(real_path: str, folders: Iterable[str]) -> bool:
    """Whether a path without links is one of these folders or lies below one. These may be links themselves."""
    return any(Path(real_path).is_relative_to(os.path.realpath(folder)) for folder in folders)


@contextmanager
def opened(real_path: str) -> Iterator[int]:
    """A descriptor (O_PATH) of the folder at an absolute path of which no part is a link.

    A path that was judged and then opened by its name may lead elsewhere meanwhile: a part of it can be swapped for a
    link by whoever owns the folder above. This one leads to where it says, or nowhere.

    Raises:
        OSError: there is no such folder, or a part of the path is a link.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open("/", flags)
    try:
        for part in Path(real_path).parts[1:]:
            deeper = os.open(part, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = deeper
        yield descriptor
    finally:
        os.close(descriptor)
