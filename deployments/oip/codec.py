"""One version's codec: what a gateway keeps of it is the headers it has met."""

from __future__ import annotations

import re
from dataclasses import replace

import orjson

from cluster.documents import DeploySettings, VersionRecord
from cluster.errors import InvalidRequest, TooLarge
from deployments.call import Buffer, TensorAnswer, TensorRequest
from deployments.oip.header import parse_header
from deployments.oip.json_forms import JsonForms
from deployments.oip.request import Limits, Template, check_elements, raw_template, template_of
from deployments.oip.response import Encoded, OutputPlan, Wanted, encode_answer

_KEPT_TEMPLATES = 64
_KEPT_HEADER_BYTES = 2048  # longer headers are parsed every time
_KEPT_PLANS = 256
_ID = re.compile(rb'\{\s*"id"\s*:\s*"([A-Za-z0-9_.:/+=@ -]{1,200})"\s*,')


class InferCodec:
    """Decodes requests to one version and encodes its answers.

    What it remembers is bounded, and only makes it faster: a request that is nothing but binary tensors behind a JSON
    header is recognised by the header's bytes, those of an id at its beginning left out; one that is JSON only by what
    stands around its values.
    """

    __slots__ = (
        "_default_s",
        "_forms",
        "_head",
        "_labels",
        "_limits",
        "_plans",
        "_raw",
        "_raw_plan",
        "_signature",
        "_templates",
    )

    def __init__(self, model: str, record: VersionRecord, limits: Limits) -> None:
        self._signature = record.signature
        self._labels = record.class_labels
        self._limits = limits
        self._default_s = (record.deploy or DeploySettings()).default_deadline_s
        self._head = orjson.dumps({"model_name": model, "model_version": record.version})[:-1] + b","
        self._plans: dict[tuple[Wanted, ...], OutputPlan] = {}
        self._templates: dict[bytes, Template] = {}
        self._raw: dict[int, Template] = {}
        self._forms = JsonForms(record.signature.inputs)
        self._raw_plan = self._plan(tuple(Wanted(n, True) for n in range(len(record.signature.outputs))))

    def decode(
        self, body: Buffer, json_length: int | None, now_s: float, timeout_s: float = 0.0
    ) -> tuple[TensorRequest, OutputPlan]:
        """A request, and the form its answer must have.

        Args:
            body: The whole body; the request's tensors are views of it where they are binary.
            json_length: How many bytes of it are the JSON header (`Inference-Header-Content-Length`). None: all of
                them. 0: none, the body is the one tensor (a raw binary request).
            now_s: `time.monotonic()`.
            timeout_s: The client's own bound, by other means than the request's `timeout` parameter; 0 for none.

        Raises:
            InvalidRequest: naming the field, what was expected and what came.
            TooLarge: more JSON or more tensors than the limits allow.
        """
        size = len(body)
        id = ""
        if json_length is None:
            json_length = size
            form = self._forms.read(body) if type(body) is bytes and size <= self._limits.max_json_bytes else None
            if form is not None:
                template, tensor = form
                return self._request(template, (tensor,), now_s, timeout_s, "")
            template = self._parse(body)
        elif json_length == 0:
            template = self._raw.get(size) or self._parse_raw(size)
        elif 0 < json_length <= size:
            head = body[:json_length]
            if type(head) is not bytes:
                head = bytes(head)
            known = self._templates.get(head)
            if known is None and (named := _ID.match(head)) is not None:
                known = self._templates.get(b"{" + head[named.end() :])
                if known is not None:
                    id = named[1].decode()
            template = known or self._parse(head)
        else:
            raise InvalidRequest(f"Inference-Header-Content-Length: expected 0 to {size}, got {json_length}")
        if template.binary_bytes != size - json_length:
            raise InvalidRequest(
                f"request: expected {template.binary_bytes} bytes of binary tensors after the JSON, "
                f"got {size - json_length}"
            )
        return self._request(template, self._data(template, body, json_length), now_s, timeout_s, id)

    def encode(self, plan: OutputPlan, answer: TensorAnswer, id: str = "") -> Encoded:
        """Raises: InvalidRequest if an output that was asked for as JSON has no JSON form."""
        return encode_answer(plan, answer, self._signature, self._labels, self._head, id)

    def _request(
        self, template: Template, data: tuple[Buffer, ...], now_s: float, timeout_s: float, id: str
    ) -> tuple[TensorRequest, OutputPlan]:
        wish_s = template.timeout_s
        if timeout_s and (not wish_s or timeout_s < wish_s):
            wish_s = timeout_s
        deadline_s = now_s + min(wish_s or self._default_s, self._limits.max_deadline_s)
        request = TensorRequest(template.rows, template.shapes, data, deadline_s, template.priority, id or template.id)
        return request, template.plan

    def _data(self, template: Template, body: Buffer, start: int) -> tuple[Buffer, ...]:
        if not template.binary_bytes and None not in template.data:
            return template.data  # type: ignore[return-value]
        view = memoryview(body)
        if len(template.slices) == 1:
            data: tuple[Buffer, ...] = (view[start:],)
        else:
            data = tuple(
                view[start + a : start + b] if part is None else part
                for part, (a, b) in zip(template.data, template.slices, strict=True)
            )
        for n in template.checked:
            spec = self._signature.inputs[n]
            check_elements(memoryview(data[n]), spec, template.shapes[n], f"inputs.{spec.name}")
        return data

    def _parse(self, head: Buffer) -> Template:
        if len(head) > self._limits.max_json_bytes:
            raise TooLarge(
                f"request: at most {self._limits.max_json_bytes} bytes of JSON are accepted, got {len(head)}; "
                f"send tensors as binary tensor data"
            )
        header = parse_header(head, self._limits.max_json_depth)
        template = template_of(header, self._signature, self._limits, self._plan)
        if type(head) is bytes:
            self._forms.learn(head, header, template)
        if template.reusable and len(head) <= _KEPT_HEADER_BYTES:
            if len(self._templates) >= _KEPT_TEMPLATES:
                del self._templates[next(iter(self._templates))]
            key = bytes(head)
            named = _ID.match(key)
            if named is not None and header.id == named[1].decode():
                key, template = b"{" + key[named.end() :], replace(template, id="")
            elif header.id:
                return template
            self._templates[key] = template
            return replace(template, id=header.id) if header.id else template
        return template

    def _parse_raw(self, size: int) -> Template:
        template = raw_template(size, self._signature, self._raw_plan)
        if len(self._raw) >= _KEPT_TEMPLATES:
            self._raw.clear()
        self._raw[size] = template
        return template

    def _plan(self, wanted: tuple[Wanted, ...]) -> OutputPlan:
        plan = self._plans.get(wanted)
        if plan is None:
            outputs = self._signature.outputs
            plain = all(w.binary and not w.classes and outputs[w.index].item_bytes for w in wanted)
            plan = OutputPlan(wanted, plain)
            if len(self._plans) >= _KEPT_PLANS:
                self._plans.clear()
            self._plans[wanted] = plan
        return plan
