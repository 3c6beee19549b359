"""Laws of the thread that reads ahead: order, bounds, errors where they arose, no thread left."""

import gc
import threading
import time
import traceback

import pytest
import torch

from ftmamba.data.read_ahead import pinned, read_ahead, to_device


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


class Counted:
    """Numbers from 0, made one at a time; says how many were made and where it was closed."""

    def __init__(self, n, *, fail_at=None):
        self.n, self.fail_at, self.n_made, self.closed_in = n, fail_at, 0, None

    def numbers(self):
        try:
            for number in range(self.n):
                if number == self.fail_at:
                    raise LookupError(f"row {number} is gone")
                self.n_made += 1
                yield number
        finally:
            self.closed_in = threading.current_thread().name


@pytest.mark.parametrize("n_ahead", [1, 2, 50])
@pytest.mark.parametrize("n", [0, 1, 20])
def test_items_come_once_and_in_their_order(n, n_ahead):
    source = Counted(n)
    with read_ahead(source.numbers(), n_ahead=n_ahead) as ahead:
        assert list(ahead) == list(range(n))
        assert list(ahead) == []
    assert source.closed_in == "read_ahead_0"


@pytest.mark.parametrize("n_ahead", [1, 3])
def test_no_more_items_wait_than_were_asked_for(n_ahead):
    source = Counted(100)
    with read_ahead(source.numbers(), n_ahead=n_ahead) as ahead:
        for n_used in range(2):
            # One more is made and waits for room.
            assert wait_until(lambda n=n_used: source.n_made == n_ahead + 1 + n)
            time.sleep(0.02)
            assert source.n_made == n_ahead + 1 + n_used
            assert next(ahead) == n_used


@pytest.mark.parametrize("fail_at", [0, 3])
def test_an_error_comes_where_its_item_would_with_its_own_traceback(fail_at):
    found = []
    source = Counted(9, fail_at=fail_at)
    with pytest.raises(LookupError, match="gone") as raised, read_ahead(source.numbers()) as ahead:
        found.extend(ahead)
    assert found == list(range(fail_at))
    assert raised.value.__notes__ == [f"raised in the thread that reads ahead, by item {fail_at}"]
    assert "numbers" in [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]


@pytest.mark.parametrize("n_used", [0, 5])
@pytest.mark.parametrize("n_ahead", [1, 2])
def test_leaving_early_stops_the_thread_and_closes_the_items(n_used, n_ahead):
    source = Counted(1000, fail_at=n_used + 1)
    with read_ahead(source.numbers(), n_ahead=n_ahead) as ahead:
        for _ in range(n_used):
            next(ahead)
    # The error ahead is not reached, so it is not raised.
    assert source.n_made <= n_used + n_ahead + 2
    assert source.closed_in == "read_ahead_0"
    assert list(ahead) == []


def test_leaving_while_an_item_is_in_the_making_waits_for_it():
    begun, go_on = threading.Event(), threading.Event()

    def items():
        begun.set()
        assert go_on.wait(10)
        yield 0
        raise AssertionError("a stopped thread made another item")

    with read_ahead(items()):
        assert begun.wait(10)
        timer = threading.Timer(0.05, go_on.set)
        timer.start()
    assert go_on.is_set()
    timer.join()


def test_a_user_who_forgets_the_with_is_not_held_up_by_the_thread():
    source = Counted(1000)
    context = read_ahead(source.numbers())
    assert next(context.__enter__()) == 0
    del context
    gc.collect()
    assert wait_until(lambda: source.closed_in == "read_ahead_0")


def test_an_error_inside_the_with_is_raised_as_it_is():
    source = Counted(1000)
    with pytest.raises(ZeroDivisionError), read_ahead(source.numbers()) as ahead:
        1 / next(ahead)
    assert source.closed_in == "read_ahead_0"


def test_no_room_to_read_ahead_is_refused():
    with pytest.raises(ValueError, match="n_ahead must be >= 1, got 0"), read_ahead([], n_ahead=0):
        pass


def test_tensors_for_the_cpu_are_left_and_those_for_a_gpu_are_pinned_by_that_gpu(monkeypatch):
    tensors = {"x": torch.tensor([1, 2]), "y": torch.tensor([5.0])}
    assert pinned(tensors, torch.device("cpu")) is tensors
    assert to_device(tensors, torch.device("cpu"))["x"] is tensors["x"]

    current, pins = [None], []

    class Current:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            current.append(self.device)

        def __exit__(self, *_):
            current.pop()

    def pin_memory(tensor):
        pins.append(current[-1])
        return tensor + 1

    monkeypatch.setattr(torch.cuda, "device", Current)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    found = pinned(tensors, torch.device("cuda:3"))
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"x": [2, 3], "y": [6.0]}
    assert pins == [torch.device("cuda:3")] * 2


@pytest.mark.gpu
def test_pinned_tensors_arrive_on_the_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda:0")
    source = ({"x": torch.full((1000, 100), number)} for number in range(20))
    with read_ahead(pinned(tensors, device) for tensors in source) as ahead:
        for number, tensors in enumerate(ahead):
            assert tensors["x"].is_pinned()
            assert bool((to_device(tensors, device)["x"] == number).all())
