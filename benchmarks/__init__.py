"""Is it fast, and compared with what?  Timed rows, machine limits and quality curves; ``python -m benchmarks``."""
