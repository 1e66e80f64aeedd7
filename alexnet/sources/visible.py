"""Which files below a folder count as images: all but hidden files and files of file managers."""

from alexnet import storage

# Written by the file manager of Windows into folders with images.
_FILE_MANAGER_FILES = {"Thumbs.db", "desktop.ini"}


def is_visible(path: str) -> bool:
    """Whether a file or folder counts.

    Args:
        path: relative to the folder that is listed.
    """
    parts = path.split("/")
    is_hidden = any(part.startswith(".") for part in parts)
    return not is_hidden and parts[-1] not in _FILE_MANAGER_FILES


def visible_files(folder: str, *, recursive: bool = True) -> list[storage.File]:
    """The files of a folder, sorted by path, that are not hidden and not in a hidden folder.

    Args:
        folder: path or URI; whether it is hidden itself does not matter.
        recursive: whether files at any depth are listed.
    """
    files = storage.list_files(folder, recursive=recursive)
    return [file for file in files if is_visible(file.path[len(folder) :].lstrip("/"))]


def visible_folders(folder: str) -> list[str]:
    """Names of the folders directly below a folder that are not hidden, sorted."""
    return [name for name in storage.list_folders(folder) if not name.startswith(".")]
