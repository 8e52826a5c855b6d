"""What was captured: cameras, photos, sparse points, the world frame, the synthetic city."""
