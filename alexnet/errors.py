"""The one exception for what a user can put right."""


class UserError(ValueError):
    """A wrong setting or input: the message is one line that names it and says what to do.

    Commands print the message and exit with status 2; a traceback would only hide it.
    """
