"""Every item once an epoch, the same order for any number of threads, and going on anywhere."""

import time

import pytest

from jaxtune.data.errors import DataError
from jaxtune.data.order import Order, Turn


def turns(items, each, **options) -> list[Turn]:
    return list(Order(items, each, lambda turn: turn, **options))


@pytest.mark.parametrize("items, each", [(1, 1), (7, 3), (12, 4), (100, 7), (5, 9)])
@pytest.mark.parametrize("seed", [None, 0, 11])
def test_an_epoch_holds_every_item_once(items, each, seed):
    found = turns(items, each, seed=seed, epochs=3)
    steps = -(-items // each)
    assert [turn.step for turn in found] == list(range(3 * steps))
    for epoch in range(3):
        of_it = [turn for turn in found if turn.epoch == epoch]
        assert len(of_it) == steps
        assert sorted(item for turn in of_it for item in turn.items) == list(range(items))
        assert [len(turn.items) for turn in of_it[:-1]] == [each] * (steps - 1)


def test_epochs_are_shuffled_anew_and_seeds_differ():
    orders = {}
    for seed in (0, 1):
        for turn in turns(50, 50, seed=seed, epochs=3):
            orders[seed, turn.epoch] = tuple(turn.items)
    # Six orders: seed 1 does not begin where seed 0 goes on.
    assert len(set(orders.values())) == 6
    assert [turn.items for turn in turns(50, 50)] == [list(range(50))]


def test_the_items_of_a_step_are_known_before_it_is_made():
    order = Order(40, 7, lambda turn: pytest.fail("a step was made"), seed=5, epochs=2, workers=0)
    expected = [turn.items for turn in turns(40, 7, seed=5, epochs=2)]
    assert [order.items(step) for step in range(order.steps)] == expected
    assert order.state()["step"] == 0


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_the_order_is_that_of_one_thread(workers):
    def slow(turn):
        time.sleep(0.002 * (turn.step % 3))
        return turn

    expected = turns(40, 3, seed=5, epochs=2, workers=0)
    assert list(Order(40, 3, slow, seed=5, epochs=2, workers=workers, ahead=8)) == expected


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("taken", [0, 1, 5, 13, 14, 20, 28])
def test_going_on_is_never_having_stopped(workers, taken):
    whole = turns(40, 3, seed=5, epochs=2)
    first = Order(40, 3, lambda turn: turn, seed=5, epochs=2, workers=workers)
    assert [next(first) for _ in range(taken)] == whole[:taken]
    state = first.state()
    assert all(type(value) is int for value in state.values()) and len(state) == 4
    again = Order(40, 3, lambda turn: turn, seed=5, epochs=2, workers=workers)
    again.restore(state)
    assert list(again) == whole[taken:]
    first.restore({**state, "step": 2})  # back, too
    assert list(first) == whole[2:]


def test_going_on_makes_nothing_anew():
    made = []

    def make(turn):
        made.append(turn)
        return turn

    order = Order(10**9, 10, make, seed=1, epochs=3, workers=0)
    began = time.perf_counter()
    order.restore({**order.state(), "step": 2 * 10**8})
    next(order)
    assert time.perf_counter() - began < 1 and [turn.step for turn in made] == [2 * 10**8]
    assert made[0].epoch == 2


def test_going_on_in_another_order_is_refused():
    state = Order(40, 3, list, seed=5).state()
    with pytest.raises(DataError, match="items was 40 and is now 41; seed was 5 and is now -1"):
        Order(41, 3, list).restore(state)
    with pytest.raises(DataError, match="after step 15: there are only 14 steps"):
        Order(40, 3, list, seed=5).restore({**state, "step": 15})


def test_without_end():
    order = Order(4, 3, lambda turn: turn, seed=0, epochs=None)
    found = [next(order) for _ in range(9)]
    order.close()
    assert order.steps is None and [turn.epoch for turn in found] == [0, 0, 1, 1, 2, 2, 3, 3, 4]


def test_what_goes_wrong_in_a_thread_is_raised_at_its_step():
    def make(turn):
        if turn.step == 2:
            raise DataError("a.jsonl:3: odd")
        return turn.step

    order = Order(10, 2, make, workers=2)
    assert [next(order), next(order)] == [0, 1]
    with pytest.raises(DataError, match="odd"):
        next(order)
