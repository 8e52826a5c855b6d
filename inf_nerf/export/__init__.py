"""What other programs can use: points, meshes, 3D Tiles, orthophotos, smaller checkpoints."""
