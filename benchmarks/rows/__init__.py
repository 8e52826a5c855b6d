"""What is timed: each module makes the cases of a few rows."""
