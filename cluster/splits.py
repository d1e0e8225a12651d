"""How live traffic is divided between versions: integer shares that add up to 10,000, and a pure pick."""

from __future__ import annotations

import random
from dataclasses import dataclass
from hashlib import blake2b

from cluster.errors import InvalidRequest
from cluster.names import check_version

WHOLE_BP = 10_000  # one whole, in basis points


@dataclass(frozen=True, slots=True)
class Arm:
    """One version's share of a model's traffic, in basis points (1/100 of a percent)."""

    version: str
    share_bp: int


@dataclass(frozen=True, slots=True)
class TrafficSplit:
    """Arms whose shares add up to 10,000; an invalid split cannot be constructed.

    `salt` belongs to a rollout: while it stays, a key that has met an arm keeps meeting it as that arm's share grows.
    The last arm is the one being introduced: it owns the first buckets, so growing it moves keys only towards it.
    """

    arms: tuple[Arm, ...]
    salt: str = ""

    def __post_init__(self) -> None:
        for arm in self.arms:
            check_version(arm.version)
            if not 0 <= arm.share_bp <= WHOLE_BP:
                raise InvalidRequest(f"split.{arm.version}: expected 0 to {WHOLE_BP} basis points, got {arm.share_bp}")
        if len({arm.version for arm in self.arms}) != len(self.arms):
            raise InvalidRequest(f"split: each version once, got {[arm.version for arm in self.arms]}")
        total = sum(arm.share_bp for arm in self.arms)
        if total != WHOLE_BP:
            raise InvalidRequest(f"split: shares must add up to {WHOLE_BP} basis points (100 %), got {total}")

    @classmethod
    def all_to(cls, version: str, salt: str = "") -> TrafficSplit:
        return cls((Arm(version, WHOLE_BP),), salt)

    @classmethod
    def parse(cls, text: str, salt: str = "") -> TrafficSplit:
        """From `1=90,2=10` (percent, up to two decimals). Raises: InvalidRequest."""
        arms = []
        for part in text.split(","):
            version, sep, percent = part.strip().partition("=")
            try:
                share = float(percent) * 100
                if not sep or share != share or abs(share - round(share)) > 1e-6:
                    raise ValueError
            except (ValueError, OverflowError):
                raise InvalidRequest(f"split: expected VERSION=PERCENT,..., e.g. 1=90,2=10, got {part!r}") from None
            arms.append(Arm(check_version(version), round(share)))
        return cls(tuple(arms), salt)

    def __str__(self) -> str:
        """As `parse` reads it: `1=90,2=10`."""
        return ",".join(f"{arm.version}={arm.share_bp / 100:g}" for arm in self.arms)

    @property
    def versions(self) -> tuple[str, ...]:
        """Versions with a share above zero."""
        return tuple(arm.version for arm in self.arms if arm.share_bp)

    def share_bp(self, version: str) -> int:
        return next((arm.share_bp for arm in self.arms if arm.version == version), 0)

    def pick(self, key: str | bytes | None) -> str:
        """The version that answers: the same for the same key; at random, by share, without one."""
        if len(self.arms) == 1:
            return self.arms[0].version
        bucket = random.randrange(WHOLE_BP) if key is None else bucket_of(self.salt, key)
        for arm in reversed(self.arms):
            bucket -= arm.share_bp
            if bucket < 0:
                return arm.version
        raise AssertionError("shares add up to the whole")


def bucket_of(salt: str, key: str | bytes) -> int:
    """0..9999, uniform over keys and independent between salts.

    Bucketing by hash(salt, key) modulo the whole is the scheme of Statsig and LaunchDarkly; blake2b because it is
    the fastest good hash in the standard library.
    """
    raw = key.encode() if isinstance(key, str) else key
    digest = blake2b(raw, digest_size=8, key=salt.encode()[:64]).digest()
    return int.from_bytes(digest, "big") % WHOLE_BP
