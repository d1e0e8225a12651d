from loadtest.bench.micro import measure


def test_every_part_of_the_path_can_be_timed():
    timings = {timing.name: timing for timing in measure(seconds=0.001)}
    assert all(0 < t.least_us <= t.call_us and t.calls >= 5 for t in timings.values())
    for part in ("decode T raw", "decode T json", "encode T binary", "wire: encode frame", "policy: decide", "hop: "):
        assert any(name.startswith(part) for name in timings), part
