"""The exceptions for anything the user can put right."""


class InputError(ValueError):
    """Input that cannot be used.

    The message is one sentence that says what was found, where, and what to do.  The command line prints it without a
    traceback and exits with code 2.
    """


class NotFiniteError(InputError):
    """A loss, gradient or value is NaN or infinite on some rank, whatever the loss scale; nothing of it was kept."""
