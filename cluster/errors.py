"""The errors Prism raises, named by what a caller should understand.

Each takes one message, so that it survives pickling and the wire. They know nothing of HTTP or gRPC:
`deployments.status` maps them.
"""


class ServingError(Exception):
    """Anything Prism refuses or fails to do, with a message meant for the caller."""

    def __init__(self, message: str) -> None:
        super().__init__(message)

    @property
    def message(self) -> str:
        return str(self.args[0])


class InvalidRequest(ServingError):
    """The caller sent something that cannot be right; the message names the field, what was expected, what came."""


class ModelNotFound(ServingError):
    """No such model, version or label."""


class ModelNotReady(ServingError):
    """The model exists, but nothing can answer for it now; trying again may help."""


class Overloaded(ServingError):
    """A queue is full; trying again later may help."""


class DeadlineExceeded(ServingError):
    """The time the caller allowed has passed, or cannot be kept."""


class Cancelled(ServingError):
    """The caller went away."""


class TooLarge(ServingError):
    """A body, header or tensor is larger than the server accepts."""


class Unauthorized(ServingError):
    """A control call without the admin token."""


class StaleRevision(ServingError):
    """Somebody else changed the document first; nothing was written."""


class StoreUnavailable(ServingError):
    """The version store cannot be reached; nothing was written."""


class ConversionFailed(ServingError):
    """A model could not be converted, or the result did not match its source."""


class ArtifactCorrupt(ServingError):
    """An artifact's files do not match its manifest."""


class EngineFailed(ServingError):
    """The runtime failed while computing an answer."""


class Conflict(ServingError):
    """The request is well formed, but the present state forbids it (a label in use, a version that is not READY)."""


class OperatorError(ServingError):
    """A command cannot be carried out on this machine (port taken, nothing running, file missing)."""


def error_from_wire(name: str, message: str) -> ServingError:
    """The error called `name`, or `EngineFailed` for a name this process does not know."""
    kind = _BY_NAME.get(name)
    return kind(message) if kind is not None else EngineFailed(message)


def _tree(root: type[ServingError]) -> list[type[ServingError]]:
    return [root, *(found for child in root.__subclasses__() for found in _tree(child))]


_BY_NAME = {kind.__name__: kind for kind in _tree(ServingError)}
