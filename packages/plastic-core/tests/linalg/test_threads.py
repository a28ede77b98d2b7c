"""Work in threads: the order of results, errors, and the same bits for any number of threads."""

import threading
import time

import numpy as np
import pytest
from plastic_core import linalg
from plastic_core.linalg import in_threads, one_blas_thread, product, using_workers
from threadpoolctl import threadpool_info


def blas_threads():
    return {
        library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"
    }


def test_results_come_in_the_order_of_the_items():
    def late(n):
        time.sleep(0.01 * (4 - n))
        return n

    with using_workers(4):
        assert in_threads(late, range(4)) == [0, 1, 2, 3]


def test_parts_run_side_by_side():
    both = threading.Barrier(2, timeout=60)
    with using_workers(2):
        in_threads(lambda _: both.wait(), range(2))  # which one thread would wait for in vain


def test_what_a_part_starts_is_done_where_it_is():
    def part(_):
        here = threading.current_thread()
        return in_threads(lambda _: threading.current_thread() is here, range(3))

    with using_workers(2):
        assert in_threads(part, range(3)) == [[True] * 3] * 3


def test_the_first_item_that_fails_is_raised_after_all_that_began():
    running, ended = threading.Event(), []

    def part(n):
        if n == 0:
            running.wait(60)
            raise ValueError("zero")
        running.set()
        time.sleep(0.05)
        ended.append(n)

    with using_workers(2), pytest.raises(ValueError, match="zero"):
        in_threads(part, range(2))
    assert ended == [1]


def test_the_error_state_of_numpy_is_the_callers():
    with using_workers(2), np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        in_threads(lambda n: np.float32(n) / np.zeros(1, np.float32), [1, 2])


def test_blas_has_one_thread_inside_and_its_own_number_after():
    before = blas_threads()
    with one_blas_thread():
        with one_blas_thread():
            assert blas_threads() == {1}
        assert blas_threads() == {1}
    assert blas_threads() == before


@pytest.mark.parametrize("shape", [(1300, 64, 700), (70, 64, 1500), (3, 5, 2)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_product_has_the_same_bits_for_any_number_of_threads(shape, dtype):
    rng, (m, k, n) = np.random.default_rng(0), shape
    A, B = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
    products = []
    for count in (1, 2, 4):
        with using_workers(count):
            products.append(product(A, B).tobytes())
    assert len(set(products)) == 1
    bound = k * np.finfo(dtype).eps * (abs(A) @ abs(B))
    assert (abs(np.frombuffer(products[0], dtype).reshape(m, n) - A @ B) <= bound).all()


def test_a_product_is_written_where_it_is_wanted():
    A, out = np.ones((600, 2)), np.empty((600, 3))
    assert product(A, np.ones((2, 3)), out=out) is out
    assert (out == 2).all()


def test_at_least_one_thread():
    assert linalg.workers() >= 1
