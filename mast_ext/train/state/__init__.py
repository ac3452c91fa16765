"""What a run keeps on disk: its directory, its checkpoints, and networks restored from them."""
