"""URLs of inference requests: which model, version or label they are addressed to."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from cluster.errors import InvalidRequest
from cluster.names import Target, check_label, check_model, check_version

_PREFIX = b"/v2/models/"
_SUFFIX = b"/infer"


def infer_target(url: bytes) -> Target | None:
    """The target of `/v2/models/{model}[/versions/{version} or /labels/{label}]/infer`; None for any other URL.

    Each part is percent-decoded by itself, so an encoded slash never makes two parts of one.

    Raises: InvalidRequest if a part can name no such thing.
    """
    path = url.partition(b"?")[0]
    if not path.startswith(b"/"):  # absolute form, RFC 9112, 3.2.2
        path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
    if not path.startswith(_PREFIX) or not path.endswith(_SUFFIX):
        return None
    parts = path[len(_PREFIX) : -len(_SUFFIX)].split(b"/")
    if len(parts) == 1:
        return Target(check_model(_decoded(parts[0])))
    if len(parts) == 3 and parts[1] == b"versions":
        return Target(check_model(_decoded(parts[0])), version=check_version(_decoded(parts[2])))
    if len(parts) == 3 and parts[1] == b"labels":
        return Target(check_model(_decoded(parts[0])), label=check_label(_decoded(parts[2])))
    return None


def _decoded(part: bytes) -> str:
    try:
        return (unquote_to_bytes(part) if b"%" in part else part).decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"URL: expected UTF-8, got {part[:100]!r}") from None
