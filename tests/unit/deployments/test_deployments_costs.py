from cluster.costs import CostCurve
from deployments.costs import METADATA, encode, told

CURVE = CostCurve.of({1: 0.002, 8: 0.004})


def test_what_a_replica_measured_reaches_a_gateway_whole():
    assert told([{METADATA: encode(CURVE), "unix": "/x"}]) == CURVE


def test_of_several_replicas_the_fastest_counts():
    slower = CostCurve.of({1: 0.001, 8: 0.009})
    assert told([{METADATA: encode(CURVE)}, {METADATA: encode(slower)}]) == CostCurve.of({1: 0.001, 8: 0.004})


def test_replicas_that_say_nothing_or_something_else_are_left_out():
    strange = ({}, {METADATA: "no json"}, {METADATA: "[1]"}, {METADATA: '{"rows": [1, 2], "seconds": [0.1]}'})
    assert told(strange) == CostCurve()
    assert told([*strange, {METADATA: encode(CURVE)}]) == CURVE
