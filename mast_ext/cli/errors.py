"""What is wrong with a command line. Apart from `main`, which may run under another name."""


class UsageError(Exception):
    """The command line (or the file of `--config`) does not make sense."""
