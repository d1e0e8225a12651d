import pytest

from loadtest.server_metrics import parse, server_figures, server_timeline


def page(batches, rows, replicas=1, queue=0, gateway="g"):
    return f"""# TYPE prism_batch_rows histogram
prism_batch_rows_bucket{{model="m",version="1",arm="",le="1.0"}} {batches / 2}
prism_batch_rows_bucket{{model="m",version="1",arm="",le="8.0"}} {batches}
prism_batch_rows_bucket{{model="m",version="1",arm="",le="+Inf"}} {batches}
prism_batch_rows_count{{model="m",version="1",arm=""}} {batches}
prism_batch_rows_sum{{model="m",version="1",arm=""}} {rows}
prism_batch_rows_count{{model="other",version="1",arm=""}} 1e9
prism_replicas{{model="m",version="1",arm=""}} {replicas}
prism_queue_rows{{model="m",version="1",arm=""}} {queue}
prism_gateway_info{{gateway="{gateway}"}} 1
python_info{{version="3.11"}} 1
this is no metric
prism_broken{{ 1
"""


def test_batches_are_counted_between_two_moments_and_for_the_loaded_model_only():
    snapshots = [parse(page(100, 100), 10.0), parse(page(110, 150, replicas=3, queue=7), 20.0)]
    found = server_figures(snapshots, ["m"], 10.0, 20.0)
    assert found.batch_rows == pytest.approx(5.0)
    assert found.batches == {"1": 5, "8": 5}
    assert (found.replicas_min, found.replicas_max, found.queue_rows_max) == (1, 3, 7)


def test_counters_of_several_gateways_are_not_mixed():
    snapshots = [
        parse(page(100, 100, gateway="a"), 10.0),
        parse(page(900, 900, gateway="b"), 11.0),
        parse(page(110, 140, gateway="a"), 12.0),
        parse(page(910, 920, gateway="b"), 13.0),
    ]
    assert server_figures(snapshots, ["m"], 10.0, 13.0).batch_rows == pytest.approx(60 / 20)


def test_a_restarted_gateway_counts_from_zero():
    snapshots = [parse(page(100, 400), 10.0), parse(page(10, 20), 20.0)]
    assert server_figures(snapshots, ["m"], 10.0, 20.0).batch_rows == pytest.approx(2.0)


def test_snapshots_fall_into_the_seconds_of_the_run_and_gaps_stay_gaps():
    snapshots = [parse(page(10, 10), 100.2), parse(page(20, 40, replicas=2), 101.2), parse(page(30, 70), 103.2)]
    line = server_timeline(snapshots, ["m"], epoch_s=100.0, seconds=4)
    assert line.batch_rows == (None, 3.0, None, 3.0)
    assert line.replicas == {"1": (1.0, 2.0, None, 1.0)}
    assert line.wanted == line.granted == {}


def test_what_was_wanted_and_granted_is_laid_onto_the_seconds_too():
    labels = '{model="m",version="1"}'
    pages = [f"prism_replicas_wanted{labels} 2", f"prism_replicas_wanted{labels} 3\nprism_replicas_granted{labels} 1"]
    line = server_timeline([parse(text, 100.5 + t) for t, text in enumerate(pages)], ["m"], 100.0, 3)
    assert (line.wanted, line.granted) == ({"1": (2.0, 3.0, None)}, {"1": (None, 1.0, None)})


def test_a_server_without_metrics_leaves_nothing_behind():
    found = server_figures([], ["m"], 0.0, 1.0)
    assert (found.batch_rows, found.batches, found.replicas_max) == (None, {}, None)
    assert server_timeline([], ["m"], 0.0, 2).batch_rows == (None, None)


def node(**batches):
    """A scrape of a node with several gateways: every series has its gateway as a label."""
    pages = []
    for name, count in batches.items():
        pages.append(
            page(count, 2 * count, replicas=3, queue=5, gateway=name).replace('arm=""', f'arm="",gateway="{name}"')
        )
    return "".join(pages)


def test_the_gateways_of_a_node_add_up_and_see_the_same_replicas():
    snapshots = [parse(node(a=100, b=900), 10.0), parse(node(b=910, a=110), 20.0)]
    assert snapshots[0].gateway == snapshots[1].gateway == "a,b"
    found = server_figures(snapshots, ["m"], 10.0, 20.0)
    assert found.batch_rows == pytest.approx(2.0) and sum(found.batches.values()) == 20
    assert (found.replicas_max, found.queue_rows_max) == (3, 10)


def test_a_gateway_that_was_replaced_makes_no_jump():
    snapshots = [parse(node(a=100, b=900), 10.0), parse(node(a=110, c=5), 20.0), parse(node(a=120, c=15), 30.0)]
    found = server_figures(snapshots, ["m"], 10.0, 30.0)
    assert sum(found.batches.values()) == 20
