"""Store URLs for people to read."""

from __future__ import annotations

import re

_CREDENTIALS = re.compile(r"://.*@", re.DOTALL)  # to the last @: a password may hold anything
_PARAMETER = re.compile(r"([?&](?:password|username)=)[^&#]*", re.IGNORECASE)


def redacted(url: str) -> str:
    """`url` without user name and password, fit for logs and messages."""
    return _PARAMETER.sub(r"\1***", _CREDENTIALS.sub("://", url))
