"""The exception for invalid user input; `sammed3d_ft.errors` exports it for everything else."""


class InputError(ValueError):
    """Invalid user input, described in one line.

    The message states what was given, what was expected, which case, file or point is affected, and how to fix
    it. The command line prints it to stderr without a traceback and exits with code 2.
    """
