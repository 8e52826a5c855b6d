"""Octree-partitioned radiance fields with level of detail.

The library: torch and numpy only.  Programs that use Ray and MLflow live in ``pipelines``.
"""

__version__ = "0.1.0"
