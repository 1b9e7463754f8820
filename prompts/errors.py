"""The one error for wrong input."""


class InputError(ValueError):
    """Wrong input from the user: one clear line.

    The message says what was got, what was expected, which case, file or point, and the way out. The command
    line prints it on stderr and exits with code 2, without a traceback.
    """
