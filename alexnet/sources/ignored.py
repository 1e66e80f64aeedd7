"""Names of files and folders that systems and programs leave behind: they are no data.

One list for everything: files, folders, members of archives, archives themselves, batch inference.
Names are compared without regard to case. A folder with such a name is ignored with its content.
"""

from collections.abc import Sequence, Set
from typing import NamedTuple


class _Rule(NamedTuple):
    """What one kind of program leaves behind; all in lower case."""

    name: str
    names: Set[str] = frozenset()
    prefixes: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    around: str = "\0"
    """Both the first and the last character."""


_RULES = (
    _Rule(
        "macOS",
        names={
            ".ds_store",  # Finder: the view of a folder
            "__macosx",  # Archive Utility: resource forks, in ZIP files
            ".appledouble",  # Netatalk and old servers: resource forks
            ".localized",  # Finder: a translated folder name
            ".apdisk",  # file sharing
            ".spotlight-v100",  # the search index of a volume
            ".fseventsd",  # the log of changes of a volume
            ".trashes",  # deleted files of a volume
            ".temporaryitems",
            ".documentrevisions-v100",  # versions of documents
            ".volumeicon.icns",
            "icon\r",  # Finder: the icon of a folder
            "network trash folder",  # AppleShare
            "temporary items",  # AppleShare
        },
        prefixes=("._",),  # AppleDouble: resource forks where a file system has none, also in tar
        suffixes=(":afp_afpinfo", ":afp_resource"),  # the same on servers with NTFS
    ),
    _Rule(
        "Windows",
        names={
            "thumbs.db",  # Explorer: thumbnails
            "ehthumbs.db",  # Media Center: thumbnails
            "ehthumbs_vista.db",
            "desktop.ini",  # Explorer: the view of a folder
            "folder.htt",  # Explorer of Windows 98
            "$recycle.bin",  # deleted files
            "recycler",  # deleted files, Windows XP
            "system volume information",  # restore points
        },
        suffixes=(
            ".lnk",  # a shortcut
            ":zone.identifier",  # origin of a download, copied from NTFS as a file
            "thumbs.db:encryptable",
        ),
    ),
    _Rule(
        "NAS or file system",
        names={
            "@eadir",  # Synology: thumbnails and attributes
            "@tmp",  # Synology
            "@sharebin",  # Synology: deleted files
            "#recycle",  # Synology: deleted files
            "#snapshot",  # Synology
            "@recycle",  # QNAP: deleted files
            "@recently-snapshot",  # QNAP
            ".@__thumb",  # QNAP: thumbnails
            "~snapshot",  # NetApp
            "lost+found",  # fsck on ext2 to ext4
        },
        prefixes=("synofile_thumb_",),  # Synology: a thumbnail
        suffixes=("@synoeastream", "@synoresource"),  # Synology: attributes
    ),
    _Rule(
        "photo software",
        names={
            "picasa.ini",
            ".picasa.ini",
            ".picasaoriginals",  # Picasa: originals of edited images
            "zbthumbnail.info",  # Canon ZoomBrowser
            "pspbrwse.jbf",  # Paint Shop Pro
            "descript.ion",  # ACDSee: captions
            "nksc_param",  # Nikon NX Studio: a folder of edits
            "captureone",  # Capture One: a folder of edits and thumbnails
            ".bridgecache",  # Adobe Bridge
            ".bridgecachet",
            ".bridgesort",
            ".dtrash",  # digiKam: deleted images
            "digikam4.db",
            "thumbnails-digikam.db",
        },
        suffixes=(
            ".xmp",  # Adobe and darktable: edits, beside the image
            ".pp3",  # RawTherapee: edits
            ".aae",  # Apple Photos: edits
            ".thm",  # cameras: a thumbnail
            # ExifTool: the file before a change
            *(f".{kind}_original" for kind in ("jpg", "jpeg", "png", "webp", "gif", "tif")),
        ),
    ),
    _Rule(
        "editor backup",
        prefixes=("~$",),  # Office: who has opened the file
        around="#",  # Emacs: automatically saved
        suffixes=(
            "~",  # Emacs, Vim, gedit, Kate, GIMP
            ".bak",
            ".orig",  # patch and merge tools
            ".rej",
            ".swp",  # Vim
            ".swo",
        ),
    ),
    _Rule(
        "unfinished download",
        suffixes=(
            ".crdownload",  # Chrome
            ".part",  # Firefox, yt-dlp
            ".partial",  # Edge, rclone
            ".download",  # Safari: a folder
            ".opdownload",  # Opera
            ".aria2",  # aria2: its control file
            ".!ut",  # uTorrent
            ".!qb",  # qBittorrent
            ".bc!",  # BitComet
            ".xltd",  # Thunder
            ".filepart",  # WinSCP
            ".incomplete",  # huggingface_hub
            ".ytdl",
            ".tmp",
            ".torrent",  # the description of a download
            ".url",  # a link to a page, Windows
            ".webloc",  # a link to a page, macOS
        ),
    ),
    _Rule("notebook checkpoint", names={".ipynb_checkpoints", "ipynb_checkpoints"}),
    _Rule(
        "version control",
        names={
            ".git",
            ".gitattributes",
            ".gitignore",
            ".gitmodules",
            ".gitkeep",
            ".hg",
            ".svn",
            "_svn",  # Subversion where a dot was not allowed
            "cvs",
            "_darcs",
            ".bzr",
            ".dvc",  # DVC: settings and cache
            ".dvcignore",
            "dvc.lock",
        },
        suffixes=(".dvc", ",v"),  # DVC: a pointer; RCS: the history of a file
    ),
    _Rule("Python", names={"__pycache__"}, suffixes=(".pyc",)),
)

HIDDEN = "hidden"
"""The rule for all other names that start with a dot."""

_BY_NAME = {name: rule.name for rule in _RULES for name in rule.names}
_STARTS = (".", *(start for rule in _RULES for start in (*rule.prefixes, rule.around)))
_SUFFIXES = tuple(suffix for rule in _RULES for suffix in rule.suffixes)


def ignoring_rule(parts: Sequence[str]) -> str | None:
    """The name of the rule by which a file is ignored; None if it may be data.

    Args:
        parts: the names of the folders below the source, and of the file.
    """
    return next((rule for part in parts if (rule := _rule_of_name(part))), None)


def _rule_of_name(name: str) -> str | None:
    folded = name.casefold()
    if rule := _BY_NAME.get(folded):
        return rule
    # Most names are of images, so all rules are tried at once first.
    if folded.startswith(_STARTS) or folded.endswith(_SUFFIXES):
        for candidate in _RULES:
            is_around = folded.startswith(candidate.around) and folded.endswith(candidate.around)
            if (
                is_around
                or folded.startswith(candidate.prefixes)
                or folded.endswith(candidate.suffixes)
            ):
                return candidate.name
    return HIDDEN if folded.startswith(".") else None
