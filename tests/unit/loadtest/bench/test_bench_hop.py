from loadtest.bench.hop import BODY_BYTES, Hop


def test_both_ways_bring_the_whole_body():
    hop = Hop()
    sent, shared = hop.through_socket(), hop.through_memory()
    assert sent.nbytes == shared.nbytes == BODY_BYTES
    assert sent.tobytes() == shared.tobytes() and sent.tobytes() != bytes(BODY_BYTES)
