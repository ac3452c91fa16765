"""Errors of a command line. Not in `main`: run as a program its classes are ``__main__``'s."""


class UsageError(Exception):
    """The command line (or the file of `--config`) does not make sense."""
