"""Files, errors, progress bars and pictures."""
