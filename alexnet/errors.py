"""The exceptions for what a user can put right, and an error's text on one line."""


class UserError(ValueError):
    """A wrong setting or input: the message is one line that names it and says what to do.

    Commands print the message and exit with status 2; a traceback would only hide it. Subclasses
    are kinds of errors whose remedy is a command, which this package does not name: commands know
    a remedy for each kind and add it.
    """


class MissingDatasetError(UserError):
    """A folder holds no complete data set."""


class CorruptShardError(UserError):
    """A shard is missing or damaged; it can be made again from the source."""


class CorruptDatasetError(UserError):
    """Manifest, rejects or statistics are missing, damaged or of another version."""


class SourceChangedError(UserError):
    """The source's images are no longer those that a data set was made of."""


class InputsChangedError(UserError):
    """The inputs of an output that was begun are no longer those that were listed."""


class UnaccountedFilesError(UserError):
    """Files of a source would not be used, or files that belong to it are missing."""


class InvalidModelError(UserError):
    """A model's outputs are no probabilities."""


class InvalidPredictionsError(UserError):
    """A file of predictions is missing or damaged."""


class UnwritableFolderError(UserError):
    """A folder can't be made or written to."""


class DownloadError(UserError):
    """A data set can't be downloaded."""


def one_line(error: BaseException) -> str:
    """An error's text without line breaks, for use inside a message."""
    return " ".join(str(error).split()) or type(error).__name__
