"""What a user would run instead, on the same photos; each peer lives in an environment of its own."""
