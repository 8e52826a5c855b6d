"""What came of a run, on one page that needs nothing beside itself."""
