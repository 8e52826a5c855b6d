"""How it learns: losses, metrics, the loop, shared gradients, checkpoints."""
