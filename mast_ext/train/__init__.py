"""The training side: settings, a Lightning module, checkpoints, evaluation and the report."""
