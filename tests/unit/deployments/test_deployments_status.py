from __future__ import annotations

import json
import logging

import pytest

from cluster import errors
from deployments.status import INTERNAL, STATUS, error_body, log_unknown, message_of, retry_after, status_of

ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ServingError)]


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind is not errors.ServingError])
def test_every_error_has_a_status(kind: type[errors.ServingError]) -> None:
    assert kind in STATUS


def test_a_subclass_has_the_status_of_its_nearest_parent() -> None:
    class Sooner(errors.Overloaded):
        pass

    assert status_of(Sooner("x")).http == 429
    assert status_of(KeyError("x")) is INTERNAL


def test_only_load_and_readiness_invite_a_retry() -> None:
    assert {status.http for status in STATUS.values() if retry_after(status)} == {429, 503}


def test_a_client_never_reads_an_unknown_errors_text(caplog: pytest.LogCaptureFixture) -> None:
    secret = ValueError("token=123")
    assert message_of(secret) == "internal error"
    with caplog.at_level(logging.ERROR):
        log_unknown(secret, "while testing")
    assert "token=123" in caplog.text
    assert json.loads(error_body('say "no" \udc80')) == {"error": 'say "no" ?'}
