"""What `pipelines.sweep` is made of: the file, its space, the journal, trials, Tune, the report."""
