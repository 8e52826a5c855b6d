"""``python -m pipelines`` is the command line ``inf-nerf``."""

from pipelines.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
