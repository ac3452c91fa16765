"""The command line: ``mast-ext pretrain | recipes | evaluate | bench | doctor``."""
