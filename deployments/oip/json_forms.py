"""JSON requests of one input, recognised by what stands around its values.

JSON is read left to right: where the text before the values and the text behind them are those of a request that was
read before, and the values are whole by themselves, the request is the same but for its values. Only they are parsed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cluster.errors import InvalidRequest
from cluster.tensors import TensorSpec
from deployments.call import Buffer
from deployments.oip.header import RequestHeader
from deployments.oip.json_tensors import tensor_from_json
from deployments.oip.request import Template

MAX_AROUND_BYTES = 2048
_NAME = b'"data"'
_MARK = _NAME + b":"
_KEPT_BEFORE = 64
_KEPT_BEHIND = 4  # per text before the values


class JsonForms:
    """What one version's codec keeps; bounded. Versions of several inputs have none."""

    __slots__ = ("_forms", "_spec")

    def __init__(self, inputs: Sequence[TensorSpec]) -> None:
        self._spec = inputs[0]
        self._forms: dict[bytes, list[tuple[bytes, Template]]] = {}

    def read(self, text: bytes) -> tuple[Template, Buffer] | None:
        """The request's template and its tensor, or None if the text must be parsed."""
        start = text.find(_MARK, 0, MAX_AROUND_BYTES) + len(_MARK)
        for behind, template in self._forms.get(text[:start], ()):
            if text.endswith(behind):
                try:
                    values = text[start : len(text) - len(behind)]
                    return template, tensor_from_json(values, self._spec, template.shapes[0], "")
                except InvalidRequest:  # or it only looked alike: parsing tells
                    return None
        return None

    def learn(self, text: bytes, header: RequestHeader, template: Template) -> None:
        """Remember what stands around the values of `text`, which `header` and `template` were read from.

        Not where it is long, or where an id, which is another in every request, stands there.
        """
        start = text.find(_MARK, 0, MAX_AROUND_BYTES) + len(_MARK)
        if header.id or len(header.inputs) != 1 or template.data[0] is None or start < len(_MARK):
            return
        values = bytes(header.inputs[0].data)
        at = text.find(values, start)
        before, behind = text[:start], text[at + len(values) :]
        if at < start or text[start:at].strip() or len(behind) > MAX_AROUND_BYTES:
            return
        if before.count(_NAME) > 1 or _NAME in behind:  # a field may be there twice, and which one counts is not known
            return
        if b"\\" in before or b"\\" in behind:  # and its name may be written with escapes
            return
        forms = self._forms.get(before)
        if forms is None:
            if len(self._forms) >= _KEPT_BEFORE:
                del self._forms[next(iter(self._forms))]
            forms = self._forms[before] = []
        if len(forms) < _KEPT_BEHIND:
            forms.append((behind, replace(template, data=(None,))))
