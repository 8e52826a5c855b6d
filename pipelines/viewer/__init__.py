"""The web viewer: what is rendered when (`artist`), what each visitor sees and may change, drawn by viser."""
