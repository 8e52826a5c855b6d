"""What a recorded training says: stable or not, converged or not, how fast, and what went wrong; numpy alone."""
