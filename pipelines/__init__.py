"""Ray programs and the command line; the only place that imports ray and mlflow."""
