"""How space is divided: the tree as flat arrays, routing, partition, image tiles."""
