"""What a ray sees: sampling, compositing, whole images, camera paths."""
