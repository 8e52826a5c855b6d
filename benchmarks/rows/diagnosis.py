"""What watching a training costs beside its steps, as they come by default: the ratio is the overhead in percent.

A step is that of the row ``step``.  The other candidates are what a hundred steps bring with them: the sections of the
profiler, what the monitor does for rows of metrics.jsonl (a look at the machine's memory, and judging them with a full
window), and the looks of the debugger.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.pairing import Candidate, Case
from benchmarks.rows.step import PackedStep
from benchmarks.workload import Workload, make_field, make_workload
from inf_nerf.config import Config
from inf_nerf.diagnose.alerts import Monitor
from inf_nerf.diagnose.debugger import Debugger
from inf_nerf.diagnose.memory_use import host_share
from inf_nerf.diagnose.profiler import Profiler, section

STEPS = 100
FLAT = ("occupancy", "data", "backward", "agree", "exchange", "optimiser", "exchange", "optimiser")  # of one step
NESTED = ("sample", "field", "background")  # in forward/render


def overheads(nodes: Sequence[int], threads: Sequence[int], num_rays: int) -> Iterator[Case]:
    """Row ``diagnosis``."""
    config = Config()
    for count in nodes:
        work, packed = make_workload(count, num_rays), PackedStep(make_field(count))
        looks = Looks(packed, work, config)
        rows = Rows(config)
        for used in threads:
            yield Case(
                "diagnosis",
                count,
                used,
                [
                    Candidate("step", lambda work=work, packed=packed: packed.step(work)),
                    Candidate("sections of 100 steps", sections),
                    Candidate("monitor of 100 steps", rows.judge),
                    Candidate("debugger of 100 steps", looks.run, prepare=looks.prepare),
                ],
            )


def sections() -> None:
    """The sections of the training loop, a hundred times, with nothing inside."""
    with Profiler():
        for _ in range(STEPS):
            for name in FLAT:
                with section(name):
                    pass
            with section("forward"):
                with section("render"):
                    for name in NESTED:
                        with section(name):
                            pass
                with section("losses"):
                    pass


class Rows:
    """A monitor that has seen as many rows as it keeps."""

    def __init__(self, config: Config) -> None:
        self._every = config.train.log_every
        self._monitor = Monitor(config.monitor)
        self._step = 0
        for _ in range(config.monitor.window):
            self._take(0.5)

    def judge(self) -> None:
        """The rows of a hundred steps."""
        for _ in range(STEPS // self._every):
            self._take(host_share())

    def _take(self, host_memory: float) -> None:
        self._step += self._every
        healthy = {"loss": 0.01, "rays_per_second": 5e4, "data_share": 0.02, "seconds_imbalance": 0.05}
        self._monitor.take({"step": self._step, "seconds": self._step / 10, "host_memory": host_memory, **healthy})


class Looks:
    """Looks of the debugger into the gradients and activations of one step, which stay as they are."""

    def __init__(self, packed: PackedStep, work: Workload, config: Config) -> None:
        self._packed, self._work = packed, work
        self._count = STEPS // config.debug.every
        self._every = config.debug.every
        self._debugger = Debugger(config.debug)
        self._seen: list[tuple[Any, ...]] = []

    def prepare(self) -> None:
        """Gradients and what the field computed."""
        field = self._packed.field
        if not bool(field.touched.any()):
            self._seen.clear()
            field.watch = lambda *seen: self._seen.append(seen)
            self._packed.loss(self._work).backward()
            field.watch = None

    def run(self) -> None:
        """The looks of a hundred steps."""
        field = self._packed.field
        for index in range(self._count):
            self._debugger.begin(self._every * (index + 1), field)
            assert field.watch is not None
            for seen in self._seen:
                field.watch(*seen)
            self._debugger.look()
        self._debugger.close()
