"""How two ends show each other that they know the cluster's secret without sending it.

Each sends a fresh nonce and an HMAC over both nonces and its own role; a recorded or reflected proof fits no other
connection. This keeps strangers out; it does not hide what is sent afterwards.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from cluster.errors import InvalidRequest

NONCE_BYTES = 32
GATEWAY, REPLICA = b"prism-wire-1 gateway", b"prism-wire-1 replica"


def new_nonce() -> bytes:
    return secrets.token_bytes(NONCE_BYTES)


def check_secret(secret: str) -> str:
    """The secret itself. Raises: InvalidRequest if it is empty."""
    if not secret:
        raise InvalidRequest("wire secret: expected a non-empty string")
    return secret


def proof(secret: str, role: bytes, gateway_nonce: bytes, replica_nonce: bytes) -> bytes:
    """What `role` shows to the other end."""
    message = b"|".join((role, gateway_nonce.hex().encode(), replica_nonce.hex().encode()))
    return hmac.new(secret.encode(), message, hashlib.sha256).digest()


def proves(shown: bytes, secret: str, role: bytes, gateway_nonce: bytes, replica_nonce: bytes) -> bool:
    """Whether `shown` is the proof of `role`; takes the same time whatever was shown."""
    return hmac.compare_digest(shown, proof(secret, role, gateway_nonce, replica_nonce))
