"""Pictures of a training that are drawn anywhere, without a screen: its progress, its tree, its samples."""
