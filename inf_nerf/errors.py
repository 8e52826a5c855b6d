"""The one exception for anything the user can put right."""


class InputError(ValueError):
    """Input that cannot be used.

    The message is one sentence that says what was found, where, and what to do.  The command line prints it without a
    traceback and exits with code 2.
    """
