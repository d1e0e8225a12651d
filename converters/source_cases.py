"""What a model that comes without its framework is asked: the user's cases, or random ones that it accepts."""

from __future__ import annotations

from dataclasses import replace

from cluster.errors import ConversionFailed
from cluster.tensors import ANY
from converters.candidate import Candidate, Options
from converters.proof.proving import reference_from
from converters.runtime import Specs
from converters.samples import cases_for

FREE_SIZES = (16, 224, 1)  # tokens, pixels, anything


def with_cases(candidate: Candidate, inputs: Specs, options: Options, batched: bool) -> Candidate:
    """With the user's cases, or random ones of a size that the model accepts where nobody stated any."""
    given = options.sample or options.calibrate or options.inputs or options.dynamic
    if given or not any(ANY in spec.shape[1:] for spec in inputs):
        return replace(candidate, cases=cases_for(inputs, options, batched))
    failure = ""
    for size in FREE_SIZES:
        cases = cases_for(inputs, options, batched, free=size)
        try:
            reference_from(replace(candidate, cases=cases[:1]), options)
        except ConversionFailed as error:
            failure = error.message
            continue
        note = (
            f"no size was stated for free dimensions other than rows, and {size} works: --sample or --input states one"
        )
        return replace(candidate, cases=cases, notes=(*candidate.notes, note))
    raise ConversionFailed(
        f"the model accepts none of {', '.join(map(str, FREE_SIZES))} in its free dimensions ({failure}); "
        "give --sample data.npz or --input name:DTYPE:N,..."
    )


def fixed_note(inputs: Specs) -> str:
    """Why requests to this model cannot share a call."""
    spec = next(spec for spec in inputs if not spec.shape or spec.shape[0] != ANY)
    size = f"dimension 0 of {spec.name} is fixed to {spec.shape[0]}" if spec.shape else f"{spec.name} is a scalar"
    return f"{size}: requests are not batched"
