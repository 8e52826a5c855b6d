"""Budgets as people type them."""

import re

from inf_nerf.errors import InputError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def budget_bytes(text: str, model_bytes: int) -> int:
    """Bytes that ``64MB``, ``1.5GiB``, ``250000`` or ``25%`` (of the model) stand for; else :class:`InputError`."""
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*|%)\s*", text)
    unit = found[2].upper() if found else ""
    if found is None or (unit != "%" and unit not in UNITS):
        raise InputError(f"The memory budget {text!r} is no number of bytes; write it as 64MB, 1.5GiB or 25%.")
    return int(float(found[1]) * (model_bytes / 100 if unit == "%" else UNITS[unit]))
