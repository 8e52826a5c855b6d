"""The commands by what they are for; each parses its options and starts a stage."""
