"""What is at a point: packed hash grids, heads and occupancy.  Knows no octree."""
