"""Acceptance of drafted tokens over the last requests."""

from __future__ import annotations

from typing import Any

from pd_eagle.workers.acceptance import Acceptance


def ended(verified: int, accepted: int, drafted: int) -> dict[str, Any]:
    return {
        "spec_verify_ct": verified,
        "spec_num_correct_drafts": accepted,
        "spec_num_proposed_drafts": drafted,
    }


def test_acceptance_is_weighted_by_verifications() -> None:
    acceptance = Acceptance()
    acceptance.note(ended(10, 5, 90))
    acceptance.note(ended(30, 45, 270))
    assert acceptance.length == 1 + 50 / 40
    assert acceptance.rate == 50 / 360


def test_acceptance_is_unknown_before_a_verification() -> None:
    acceptance = Acceptance()
    acceptance.note({"finish_reason": None})
    acceptance.note(ended(0, 0, 0))
    assert acceptance.length is None
    assert acceptance.rate is None


def test_acceptance_forgets_old_requests() -> None:
    acceptance = Acceptance()
    acceptance.note(ended(1000, 0, 9000))
    for _ in range(100):
        acceptance.note(ended(1, 1, 9))
    assert acceptance.length == 2
