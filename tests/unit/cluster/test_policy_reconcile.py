import pytest

from cluster.policy.reconcile import (
    GIVE_UP_S,
    LEAVE_AFTER_S,
    LOST_AFTER_S,
    RETRY_FIRST_S,
    Applied,
    Seen,
    Wanted,
    after_refusal,
    at_rest,
    plan,
    reason_of,
)

APP = "model:m:1"
WANT = {APP: Wanted("m", "1", "digest", "spec-a")}


def steps(wanted, seen, memory, now_s=100.0, before=None):
    return plan(wanted, seen, memory, before or {}, now_s)


def test_what_is_wanted_and_missing_is_run_once():
    first = steps(WANT, {}, {})
    assert first.run == (APP,) and first.statuses[APP].state == "LOADING"
    assert steps(WANT, {APP: Seen("DEPLOYING")}, first.memory).run == ()


def test_a_second_look_at_an_unchanged_application_does_nothing():
    memory = steps(WANT, {}, {}).memory
    again = steps(WANT, {APP: Seen("RUNNING", 1, 1)}, memory, 500.0)
    assert again.run == again.delete == ()
    assert again.statuses[APP].state == "READY" and again.statuses[APP].ready_once


def test_a_changed_spec_is_run_again_without_deleting():
    memory = steps(WANT, {}, {}).memory
    changed = {APP: Wanted("m", "1", "digest", "spec-b")}
    again = steps(changed, {APP: Seen("RUNNING", 1, 1)}, memory)
    assert again.run == (APP,) and again.delete == ()


def test_what_is_not_wanted_is_deleted_once_gateways_had_time_to_leave_it():
    first = steps({}, {APP: Seen("RUNNING", 1, 1)}, {APP: Applied("spec-a", 50.0)}, 100.0)
    assert first.delete == ()
    assert steps({}, {APP: Seen("RUNNING", 1, 1)}, first.memory, 101.0).delete == ()
    assert steps({}, {APP: Seen("RUNNING", 1, 1)}, first.memory, 100.0 + LEAVE_AFTER_S).delete == (APP,)
    assert steps({}, {APP: Seen("DELETING")}, first.memory, 200.0).delete == ()


def test_a_version_wanted_again_before_it_left_is_kept():
    leaving = steps({}, {APP: Seen("RUNNING", 1, 1)}, {}, 100.0).memory
    back = steps(WANT, {APP: Seen("RUNNING", 1, 1)}, leaving, 101.0)
    assert back.run == (APP,) and back.delete == ()


def test_a_failed_update_keeps_the_replicas_that_still_answer():
    failed = {APP: Seen("DEPLOY_FAILED", 2, 3, "RuntimeError: no GPU")}
    memory = steps(WANT, failed, {APP: Applied("spec-a", 100.0)}, 100.0).memory
    later = steps(WANT, failed, memory, 10_000.0)
    assert later.delete == later.run == ()
    assert later.statuses[APP].state == "DEGRADED" and "no GPU" in later.statuses[APP].reason


def test_the_spec_is_told_once_every_replica_runs_it():
    memory = steps(WANT, {}, {}, 100.0).memory
    assert steps(WANT, {APP: Seen("DEPLOYING", 1, 2)}, memory, 105.0).statuses[APP].spec == ""
    assert steps(WANT, {APP: Seen("RUNNING", 1, 1)}, memory, 100.1).statuses[APP].spec == ""
    assert steps(WANT, {APP: Seen("RUNNING", 1, 1)}, memory, 105.0).statuses[APP].spec == "spec-a"


def test_a_version_deployed_anew_has_to_prove_itself_anew():
    ready = steps(WANT, {APP: Seen("RUNNING", 1, 1)}, {APP: Applied("spec-a")}).statuses[APP]
    retired = at_rest("1", "digest", ready, stopping=False)
    again = steps(WANT, {APP: Seen("DEPLOYING", 0, 1)}, {}, before={APP: retired})
    assert again.statuses[APP].state == "LOADING" and not again.statuses[APP].ready_once


def test_an_application_that_vanished_is_run_again():
    memory = {APP: Applied("spec-a", 100.0)}
    assert steps(WANT, {}, memory, 100.0 + LOST_AFTER_S / 2).run == ()
    assert steps(WANT, {}, memory, 101.0 + LOST_AFTER_S).run == (APP,)


def test_a_failure_is_reported_with_its_reason_and_tried_again_later_and_later():
    memory = {APP: Applied("spec-a", 100.0)}
    failed = {APP: Seen("DEPLOY_FAILED", message="Traceback...\ncluster.errors.ArtifactCorrupt: model.onnx: changed\n")}
    first = steps(WANT, failed, memory, 100.0)
    assert first.statuses[APP].state == "FAILED"
    assert first.statuses[APP].reason == "ArtifactCorrupt: model.onnx: changed"
    assert first.run == first.delete == ()
    due = steps(WANT, failed, first.memory, 100.0 + RETRY_FIRST_S)
    assert due.delete == (APP,)
    retried = steps(WANT, {}, due.memory, 101.0 + RETRY_FIRST_S)
    assert retried.run == (APP,) and retried.statuses[APP].state == "FAILED"
    second = steps(WANT, failed, retried.memory, 200.0)
    assert second.memory[APP].retry_at_s == 200.0 + 2 * RETRY_FIRST_S


def test_success_forgets_earlier_failures():
    memory = {APP: Applied("spec-a", 100.0, failures=3)}
    assert steps(WANT, {APP: Seen("RUNNING", 1, 1)}, memory).memory[APP].failures == 0


def test_one_failing_version_leaves_the_others_alone():
    wanted = {**WANT, "model:m:2": Wanted("m", "2", "d2", "spec")}
    seen = {APP: Seen("DEPLOY_FAILED"), "model:m:2": Seen("RUNNING", 1, 1)}
    memory = {APP: Applied("spec-a"), "model:m:2": Applied("spec")}
    decided = steps(wanted, seen, memory)
    assert decided.run == decided.delete == ()
    assert decided.statuses["model:m:2"].state == "READY"


def test_a_version_that_was_ready_and_lost_its_replicas_is_degraded():
    memory = {APP: Applied("spec-a")}
    ready = steps(WANT, {APP: Seen("RUNNING", 1, 1)}, memory)
    lost = steps(WANT, {APP: Seen("RUNNING", 0, 1)}, ready.memory, before=ready.statuses)
    assert lost.statuses[APP].state == "DEGRADED" and lost.statuses[APP].ready_once


@pytest.mark.parametrize("word", ["RUNNING", "UNHEALTHY"])
def test_a_version_that_cannot_be_started_again_has_failed_once_that_lasts(word):
    message = "A replica failed to start with exception. Retrying. Error:\nArtifactCorrupt: model.onnx: changed"
    ready = steps(WANT, {APP: Seen("RUNNING", 1, 1)}, {APP: Applied("spec-a")})
    barred = {APP: Seen(word, 0, 1, message)}
    first = steps(WANT, barred, ready.memory, 100.0, before=ready.statuses)
    soon = steps(WANT, barred, first.memory, 99.0 + GIVE_UP_S, before=first.statuses)
    assert first.statuses[APP].state == soon.statuses[APP].state == "DEGRADED"
    late = steps(WANT, barred, soon.memory, 100.0 + GIVE_UP_S, before=soon.statuses)
    assert late.statuses[APP].state == "FAILED" and late.statuses[APP].reason == "ArtifactCorrupt: model.onnx: changed"
    assert late.run == late.delete == ()  # Serve itself goes on trying
    back = steps(WANT, {APP: Seen("RUNNING", 1, 1)}, late.memory, 200.0, before=late.statuses)
    assert back.statuses[APP].state == "READY"
    again = steps(WANT, barred, back.memory, 300.0, before=back.statuses)
    assert again.statuses[APP].state == "DEGRADED"
    asleep = steps(WANT, {APP: Seen("RUNNING", 0, 0, message)}, late.memory, 300.0, before=late.statuses)
    assert asleep.statuses[APP].state == "ASLEEP"


def test_a_version_scaled_to_zero_sleeps():
    assert steps(WANT, {APP: Seen("RUNNING", 0, 0)}, {APP: Applied("spec-a")}).statuses[APP].state == "ASLEEP"


def test_another_artifact_has_to_prove_itself_anew():
    ready = steps(WANT, {APP: Seen("RUNNING", 1, 1)}, {APP: Applied("spec-a")})
    other = {APP: Wanted("m", "1", "other", "spec-b")}
    assert not steps(other, {}, {}, before=ready.statuses).statuses[APP].ready_once


def test_a_reason_is_one_line_even_without_an_error():
    assert reason_of("  waiting for CPUs\nmore") == "waiting for CPUs"
    assert reason_of("") == ""


def test_a_version_that_is_not_to_run_drains_and_then_rests():
    ready = steps(WANT, {APP: Seen("RUNNING", 1, 1)}, {APP: Applied("spec-a")}).statuses[APP]
    assert at_rest("1", "digest", ready, stopping=True).state == "DRAINING"
    assert at_rest("1", "digest", ready, stopping=False).state == "RETIRED"
    assert at_rest("1", "other", ready, stopping=False).state == "REGISTERED"
    assert at_rest("1", "digest", None, stopping=False).state == "REGISTERED"


def test_what_could_not_even_be_run_is_not_tried_again_at_once():
    failed = after_refusal(Applied("spec-a", 100.0), "TypeError: no", 100.0)
    waiting = steps(WANT, {}, {APP: failed}, 100.0 + RETRY_FIRST_S / 2)
    assert waiting.run == () and waiting.statuses[APP].state == "FAILED"
    assert waiting.statuses[APP].reason == "TypeError: no"
    assert steps(WANT, {}, {APP: failed}, 100.0 + RETRY_FIRST_S).run == (APP,)
