"""What a run leaves to look at: tables, figures, and one HTML file that holds all."""
