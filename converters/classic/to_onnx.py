"""scikit-learn, XGBoost and LightGBM models to ONNX: one matrix of rows and features in, what the model predicts out.

Classifiers answer with `label` and, where they have any, `probabilities` (one column per class), regressors and
transformers with `variable`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import onnx
import onnxmltools
import skl2onnx
import sklearn
import xgboost
from onnxmltools.convert.common.data_types import FloatTensorType as LightgbmFloats
from onnxmltools.convert.lightgbm.operator_converters.LightGbm import convert_lightgbm as lightgbm_converter
from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost as xgboost_converter
from skl2onnx.common.data_types import FloatTensorType
from skl2onnx.common.shape_calculator import (
    calculate_linear_classifier_output_shapes,
    calculate_linear_regressor_output_shapes,
)

from cluster.errors import ConversionFailed, InvalidRequest
from cluster.tensors import ANY, TensorSpec
from converters.candidate import Candidate, Case, Options, Say
from converters.classic.source import PICKLES, load
from converters.formats import Format
from converters.onnx.failures import brief
from converters.onnx.file import MODEL_FILE, check, save
from converters.onnx.names import drop_traces
from converters.samples import cases_for, parse_input, user_data

OPSETS = {"": 18, "ai.onnx.ml": 3}  # the newest that all three converters write
LIGHTGBM_OPSET = 15
DEFAULT_INPUT = "x"
ROWS = "rows"
ZIPMAP = {"zipmap": [True, False, "columns"], "nocl": [True, False], "raw_scores": [True, False]}


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted model of one of the three libraries. `predict` gives its outputs, in the order of the ONNX."""

    model: Any
    features: int

    @property
    def certain(self) -> bool:
        """Whether a classifier gives probabilities; what others give differs from one to the next."""
        return isinstance(self.model, lightgbm.Booster) or hasattr(self.model, "predict_proba")

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        """float32 [n, features] -> the arrays that the ONNX model should give."""
        if isinstance(self.model, lightgbm.Booster):
            return _booster(self.model, x)
        if sklearn.base.is_classifier(self.model):
            label = np.asarray(self.model.predict(x))
            return (label, np.asarray(self.model.predict_proba(x), np.float32)) if self.certain else (label,)
        if hasattr(self.model, "predict") and not sklearn.base.is_clusterer(self.model):
            answers = np.asarray(self.model.predict(x))
            return (answers.reshape(len(x), -1).astype(np.float32),)
        if hasattr(self.model, "predict"):
            return np.asarray(self.model.predict(x), np.int64), np.asarray(self.model.transform(x), np.float32)
        return (np.asarray(self.model.transform(x), np.float32),)


def convert(candidate: Candidate, work: Path, options: Options, say: Say) -> Candidate:
    """The model as FP32 ONNX with the library's own answers as reference.

    Raises: InvalidRequest if the data does not fit, ConversionFailed if the file or the model cannot be used.
    """
    say("loading the model")
    kind = Format(candidate.source["kind"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each library advises about versions of the others
        model = load(candidate.path, kind, options.trust_pickle)
        fitted = Fitted(model, features_of(model))
        spec = TensorSpec(input_name(options), "FP32", (ANY, fitted.features))
        batched = options.max_rows > 1
        cases = cases_for((spec,), options, batched)
        say("running the model")
        reference = tuple(_answer(fitted, case, spec.name) for case in cases)
        say("converting to ONNX")
        try:
            found = _to_onnx(fitted, spec)
        except Exception as error:  # the converters raise many kinds
            named = type(model).__name__
            raise ConversionFailed(f"{named} cannot be converted: {type(error).__name__}: {brief(error)}") from None
    _free_rows(found)
    drop_traces(found)
    path = save(found, work / MODEL_FILE)
    check(path)
    versions = {"scikit-learn": sklearn.__version__, "skl2onnx": skl2onnx.__version__, "onnx": onnx.__version__}
    if kind != Format.SKLEARN:
        library = xgboost if kind == Format.XGBOOST else lightgbm
        versions = {kind.value: library.__version__, "onnxmltools": onnxmltools.__version__, "onnx": onnx.__version__}
    return replace(
        candidate,
        path=path,
        cases=cases,
        reference=reference,
        reference_kind=kind.value,
        tools={**candidate.tools, **versions},
        notes=(*candidate.notes, *_trusted(candidate.path, options)),
    )


def _trusted(path: Path, options: Options) -> tuple[str, ...]:
    return ("the source was a pickle, loaded because it was trusted",) if path.suffix.lower() in PICKLES else ()


def features_of(model: Any) -> int:
    """How many columns a fitted model takes. Raises: ConversionFailed for anything but a fitted model."""
    if isinstance(model, lightgbm.Booster):
        return int(model.num_feature())
    if isinstance(model, xgboost.Booster):
        raise ConversionFailed("an xgboost.Booster in a pickle: save it with save_model as .json or .ubj")
    count = getattr(model, "n_features_in_", None)
    if count is None or not (hasattr(model, "predict") or hasattr(model, "transform")):
        raise ConversionFailed(f"expected a fitted scikit-learn model, got {type(model).__name__}")
    return int(count)


def input_name(options: Options) -> str:
    """What the user calls the one input. Raises: InvalidRequest for several."""
    names = [parse_input(text).name for text in options.inputs]
    if not names:
        names = sorted({name for data in user_data(options).values() for name in data})
    if len(names) > 1:
        raise InvalidRequest(f"inputs: the model takes one array of rows and features, got {names}")
    return names[0] if names else DEFAULT_INPUT


def _answer(fitted: Fitted, case: Case, name: str) -> tuple[np.ndarray, ...]:
    try:
        return fitted.predict(case.inputs[name])
    except Exception as error:
        raise ConversionFailed(
            f"the model fails on {case.rows} rows of {case.origin} data: {type(error).__name__}: {brief(error)}"
        ) from None


def _booster(model: Any, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """A LightGBM booster's answers, which come without labels."""
    values = np.asarray(model.predict(x), np.float32)
    if values.ndim == 2:
        return values.argmax(axis=1).astype(np.int64), values
    if str(model.dump_model(num_iteration=1)["objective"]).startswith("binary"):
        return (values > 0.5).astype(np.int64), np.stack([1 - values, values], axis=1)
    return (values[:, None],)


def _to_onnx(fitted: Fitted, spec: TensorSpec) -> onnx.ModelProto:
    shape = [None, fitted.features]
    if isinstance(fitted.model, lightgbm.Booster):
        made: onnx.ModelProto = onnxmltools.convert_lightgbm(
            fitted.model,
            initial_types=[(spec.name, LightgbmFloats(shape))],
            zipmap=False,
            target_opset=LIGHTGBM_OPSET,
        )
        return made
    _register()
    asked = {"initial_types": [(spec.name, FloatTensorType(shape))], "target_opset": OPSETS}
    try:
        made = skl2onnx.to_onnx(fitted.model, options={"zipmap": False}, **asked)
    except NameError:  # skl2onnx: this kind of model has no such option
        made = skl2onnx.to_onnx(fitted.model, **asked)
    if sklearn.base.is_classifier(fitted.model) and not fitted.certain:
        del made.graph.output[1:]
    return made


def _register() -> None:
    """Tell skl2onnx of the others' models, which may stand in a pipeline."""
    classes: Sequence[tuple[Any, Any, Any, dict[str, Any] | None]] = (
        (xgboost.XGBClassifier, calculate_linear_classifier_output_shapes, xgboost_converter, ZIPMAP),
        (xgboost.XGBRegressor, calculate_linear_regressor_output_shapes, xgboost_converter, None),
        (lightgbm.LGBMClassifier, calculate_linear_classifier_output_shapes, lightgbm_converter, ZIPMAP),
        (lightgbm.LGBMRegressor, calculate_linear_regressor_output_shapes, lightgbm_converter, {"split": None}),
    )
    for model, shapes, converter, options in classes:
        name = f"{model.__module__.partition('.')[0]}{model.__name__}"
        skl2onnx.update_registered_converter(model, name, shapes, converter, options=options)


def _free_rows(model: onnx.ModelProto) -> None:
    """Dimension 0 counts rows everywhere; LightGBM's converter states one label."""
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims:
            dims[0].Clear()
            dims[0].dim_param = ROWS
