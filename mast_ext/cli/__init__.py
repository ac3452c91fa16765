"""The command line, ``mast-ext <command>``: a module for each command."""
