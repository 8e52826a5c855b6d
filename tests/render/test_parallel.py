"""Work in threads keeps its order, gives errors on, and stops early without finishing everything."""

import time

import pytest
import torch

from inf_nerf.render.parallel import available_cores, ordered_map


@pytest.mark.parametrize("workers", [1, 4])
def test_results_come_in_order(workers: int) -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0.0)
        return item * item

    assert list(ordered_map(slow_first, range(9), workers)) == [item * item for item in range(9)]


def test_torch_uses_one_thread_in_each_worker_and_as_many_as_before_afterwards() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    assert list(ordered_map(lambda _: torch.get_num_threads(), range(4), 2)) == [1] * 4
    assert list(ordered_map(lambda _: torch.get_num_threads(), range(2), 1)) == [3] * 2
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


def test_error_arrives_and_the_rest_is_dropped() -> None:
    begun: list[int] = []

    def fail(item: int) -> None:
        begun.append(item)
        time.sleep(0.01)
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"):
        list(ordered_map(fail, range(1000), 2))
    assert len(begun) < 100


def test_there_is_a_core() -> None:
    assert available_cores() >= 1
