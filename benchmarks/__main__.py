"""``python -m benchmarks``: time the rows, print a table, write JSON.

python -m benchmarks                           everything, some minutes
python -m benchmarks --quick                   a look at every row in under a minute; too few rounds to quote
python -m benchmarks --rows step threads       some rows
python -m benchmarks --nodes 1 8 --threads 1   some sizes
python -m benchmarks --out FILE.json           also as JSON
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numba
import torch

from benchmarks.limits import FEW_SIZES, SIZES, Limits
from benchmarks.pairing import Case, Effort, Result, measure
from benchmarks.rows import diagnosis, field, rays, step
from benchmarks.workload import TABLES
from inf_nerf.files import write_atomic

RAYS, QUICK_RAYS = 4096, 512
EFFORT = Effort(seconds=2.5, fewest=3, most=15)
QUICK_EFFORT = Effort(seconds=0.1, fewest=1, most=3)
QUICK_NODES = (1, 64)
COLUMNS = ("row", "nodes", "threads", "candidate", "median ms", "ratio", "of limit")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks that the command line asks for."""
    wanted = parse(arguments)
    machine, limits = describe_machine(), Limits(FEW_SIZES if wanted.quick else SIZES)
    print(", ".join(f"{name}: {value}" for name, value in machine.items()))
    print(line(COLUMNS), flush=True)
    results: list[Result] = []
    for case in cases(wanted, limits):
        for result in measure(case, QUICK_EFFORT if wanted.quick else EFFORT):
            results.append(result)
            print(line(cells(result)), flush=True)
    rates = limits.rows(wanted.threads)
    print("\n" + line(("limit", "table KiB", "threads", "", "rate", "", "")))
    for rate in rates:
        print(line((rate["name"], rate.get("table_kib", ""), rate["threads"], "", rate["rate"], rate["unit"], "")))
    if wanted.out is not None:
        content = {"machine": machine, "limits": rates, "rows": [asdict(result) for result in results]}
        write_atomic(wanted.out, json.dumps(content, indent=1) + "\n")
    return 0


ROWS = ("encode", "heads", "adam", "routing", "occupancy", "compositing", "step", "threads", "diagnosis", "render")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; a row that does not exist ends the program with code 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Time the kernels side by side.")
    parser.add_argument("--quick", action="store_true", help="fewer rays, sizes and rounds: a look, not a measurement")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME", help=", ".join(ROWS))
    parser.add_argument("--nodes", nargs="+", type=int, choices=tuple(TABLES), help="numbers of nodes")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="numbers of threads")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the results here")
    wanted = parser.parse_args(arguments)
    if wanted.nodes is None:
        wanted.nodes = list(QUICK_NODES if wanted.quick else TABLES)
    return wanted


def cases(wanted: argparse.Namespace, limits: Limits) -> Iterator[Case]:
    """The cases of the wanted rows; each is built when it is asked for and forgotten after it."""
    nodes, threads, num_rays = wanted.nodes, wanted.threads, QUICK_RAYS if wanted.quick else RAYS
    makers = {
        "encode": lambda: field.encode(nodes, threads, num_rays, limits),
        "heads": lambda: field.heads(nodes, threads, num_rays, limits),
        "adam": lambda: field.adam(nodes, threads, limits),
        "routing": lambda: rays.routing(nodes, threads, num_rays),
        "occupancy": lambda: rays.occupancy(nodes, threads, num_rays),
        "compositing": lambda: rays.compositing(threads, num_rays),
        "step": lambda: step.steps(nodes, threads, num_rays),
        "threads": lambda: step.gains(nodes, threads, num_rays),
        "diagnosis": lambda: diagnosis.overheads(nodes, threads, num_rays),
        "render": lambda: rays.render(nodes, threads, wanted.quick),
    }
    for row in wanted.rows:
        yield from makers[row]()


def describe_machine() -> dict[str, Any]:
    """What the figures depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [row.split(":")[1].strip() for row in cpuinfo.read_text().splitlines() if row.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numba": numba.__version__,
    }


def cells(result: Result) -> tuple[object, ...]:
    """A result as text."""
    fraction = "" if result.limit_fraction is None else f"{100 * result.limit_fraction:.0f} %"
    times = f"{result.median_ms:.2f}", f"{result.ratio:.2f}"
    return result.name, result.nodes, result.threads, result.candidate, *times, fraction


def line(values: Sequence[object]) -> str:
    """One line of the table."""
    widths = (18, 9, 8, -28, 10, 9, 9)
    name, *others = (str(value) for value in values)
    rest = (f"  {v:<{-w}}" if w < 0 else f"{v:>{w}}" for v, w in zip(others, widths[1:], strict=True))
    return f"{name:<{widths[0]}}" + "".join(rest)


if __name__ == "__main__":
    sys.exit(main())
