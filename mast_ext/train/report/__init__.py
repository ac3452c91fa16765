"""What a run leaves to look at: tables, figures, and one HTML page that holds all."""
