"""What is predicted of machines, from numbers that can be counted by hand."""

import pytest
from machines import Machine, predict, sent


def test_what_a_device_of_a_ring_sends():
    # Of 4 devices: gathering 8 bytes, each passes on three quarters; to reduce them first costs as much again.
    assert sent({"all-gather": 8}, devices=4) == 6
    assert sent({"reduce-scatter": 2}, devices=4) == 6
    assert sent({"all-reduce": 8}, devices=4) == 12
    assert sent({"all-reduce": 8, "all-gather": 8}, devices=1) == 0


def test_a_step_is_arithmetic_and_then_communication():
    machine = Machine("two", devices=2, flops=1e12, bandwidth=1e9, memory=1e9)
    step = predict(machine, flops=0.9e12, bytes_sent=1e9)  # of 0.3e12 FLOPs a second
    assert step == (pytest.approx(3), pytest.approx(1))
    assert step.efficiency == pytest.approx(0.75)
