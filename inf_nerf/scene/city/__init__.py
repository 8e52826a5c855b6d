"""A procedural city, photographed exactly, for trying everything without real photos."""
