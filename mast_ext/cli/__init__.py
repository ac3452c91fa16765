"""The command line: ``mast-ext pretrain | evaluate | doctor``."""
