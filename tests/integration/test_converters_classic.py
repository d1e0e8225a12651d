"""scikit-learn, XGBoost and LightGBM models become artifacts that answer as the library does."""

import os
import pickle
import re

import numpy as np
import pytest

from cluster.errors import ConversionFailed, InvalidRequest
from converters.build import convert
from converters.candidate import Options
from converters.runtime import open_runtime

for needed in ("sklearn", "skl2onnx", "onnxmltools"):
    pytest.importorskip(needed)
lightgbm, xgboost = pytest.importorskip("lightgbm"), pytest.importorskip("xgboost")
skops_io = pytest.importorskip("skops.io")

from sklearn.cluster import KMeans  # noqa: E402
from sklearn.datasets import load_breast_cancer, load_diabetes  # noqa: E402
from sklearn.decomposition import PCA  # noqa: E402
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestRegressor  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.svm import SVC  # noqa: E402

pytestmark = pytest.mark.usefixtures("forked_proofs")


@pytest.fixture(scope="module")
def cancer():
    x, y = load_breast_cancer(return_X_y=True)
    return x.astype("f4"), y


def quick(folder, x, **changes):
    np.savez(folder / "sample.npz", cells=x[:64])
    return Options(profile_s=0.05, max_rows=16, sample=folder / "sample.npz", **changes)


def converted(source, folder, x, **changes):
    (artifact,) = convert(source, folder / "out", options=quick(folder, x, **changes))
    return artifact


def test_lightgbm_text_answers_as_the_classifier_that_wrote_it(tmp_path, cancer):
    x, y = cancer
    model = lightgbm.LGBMClassifier(n_estimators=20, verbose=-1, n_jobs=1).fit(x, y)
    model.booster_.save_model(tmp_path / "m.txt")
    artifact = converted(tmp_path / "m.txt", tmp_path, x)
    signature, parity = artifact.manifest.signature, artifact.parity()
    assert [(spec.name, spec.shape) for spec in signature.inputs] == [("cells", (-1, 30))]
    assert [(spec.name, spec.shape) for spec in signature.outputs] == [("label", (-1,)), ("probabilities", (-1, 2))]
    assert signature.batched and parity["kind"] == "lightgbm" and parity["passed"]
    label, probabilities = open_runtime(artifact).run((x[100:200],))
    np.testing.assert_array_equal(label, model.predict(x[100:200]))
    np.testing.assert_allclose(probabilities, model.predict_proba(x[100:200]), atol=1e-5)
    assert (label == y[100:200]).mean() > 0.95


@pytest.mark.parametrize("suffix", [".json", ".ubj"])
def test_xgboost_files_need_no_trust(tmp_path, cancer, suffix):
    x, y = cancer
    model = xgboost.XGBClassifier(n_estimators=10, n_jobs=1).fit(x, y)
    model.save_model(tmp_path / f"m{suffix}")
    artifact = converted(tmp_path / f"m{suffix}", tmp_path, x)
    label, probabilities = open_runtime(artifact).run((x[:50],))
    np.testing.assert_array_equal(label, model.predict(x[:50]))
    np.testing.assert_allclose(probabilities, model.predict_proba(x[:50]), atol=1e-5)


def test_an_xgboost_regressor_gives_one_column(tmp_path):
    x, y = load_diabetes(return_X_y=True)
    x = x.astype("f4")
    model = xgboost.XGBRegressor(n_estimators=10, n_jobs=1).fit(x, y)
    model.save_model(tmp_path / "m.json")
    artifact = converted(tmp_path / "m.json", tmp_path, x)
    (value,) = open_runtime(artifact).run((x[:9],))
    np.testing.assert_allclose(value[:, 0], model.predict(x[:9]), rtol=1e-4)


SKLEARN = {
    "pipeline": lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
    "histogram": lambda: HistGradientBoostingClassifier(max_iter=10),
    "forest": lambda: RandomForestRegressor(n_estimators=10, random_state=0),
    "margins": lambda: make_pipeline(StandardScaler(), SVC()),
    "components": lambda: PCA(4),
    "clusters": lambda: make_pipeline(StandardScaler(), KMeans(3, n_init=1, random_state=0)),
    "inside": lambda: make_pipeline(StandardScaler(), lightgbm.LGBMClassifier(n_estimators=5, verbose=-1, n_jobs=1)),
}


@pytest.mark.parametrize("name", SKLEARN)
def test_scikit_learn_models_agree_with_their_onnx(tmp_path, cancer, name):
    x, y = cancer
    skops_io.dump(SKLEARN[name]().fit(x, y), tmp_path / "m.skops")
    parity = converted(tmp_path / "m.skops", tmp_path, x).parity()
    assert parity["passed"] and parity["kind"] == "sklearn"
    assert all(output["share_out"] == 0 for output in parity["outputs"])


def test_text_labels_stay_text(tmp_path, cancer):
    x, y = cancer
    named = np.array(["bad", "good"])[y]
    skops_io.dump(make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(x, named), tmp_path / "m.skops")
    artifact = converted(tmp_path / "m.skops", tmp_path, x)
    assert artifact.manifest.signature.outputs[0].dtype == "BYTES"
    label, _ = open_runtime(artifact).run((x[:40],))
    assert np.mean([a == b.encode() for a, b in zip(label.tolist(), named[:40], strict=True)]) > 0.9


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickles_are_refused_unread_and_loaded_when_trusted(tmp_path, cancer):
    x, y = cancer
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(ConversionFailed, match="--trust-pickle"):
        converted(tmp_path / "bomb.pkl", tmp_path, x)
    assert not (tmp_path / "exploded").exists()
    (tmp_path / "good.pkl").write_bytes(pickle.dumps(LogisticRegression(max_iter=5000).fit(x / 1000, y)))
    artifact = converted(tmp_path / "good.pkl", tmp_path, x / 1000, trust_pickle=True)
    assert any("pickle" in note for note in artifact.parity()["notes"])


def test_a_skops_file_with_a_strange_type_is_refused(tmp_path, cancer):
    skops_io.dump(Strange(), tmp_path / "m.skops")
    with pytest.raises(ConversionFailed, match="Strange, which could run code"):
        converted(tmp_path / "m.skops", tmp_path, cancer[0])


class Strange:
    pass


def test_files_that_are_something_else_are_one_clear_line(tmp_path, cancer):
    for name in ("m.json", "m.txt", "m.skops", "m.ubj"):
        (tmp_path / name).write_text("{}\n")
        with pytest.raises(ConversionFailed) as caught:
            converted(tmp_path / name, tmp_path, cancer[0])
        assert name in caught.value.message and "\n" not in caught.value.message
        assert "Stack trace" not in caught.value.message


def test_a_file_that_ends_its_library_is_an_error_and_not_the_end(tmp_path, cancer):
    x, y = cancer
    text = lightgbm.LGBMClassifier(n_estimators=3, verbose=-1, n_jobs=1).fit(x, y).booster_.model_to_string()
    (tmp_path / "m.txt").write_text(re.sub(r"tree_sizes=.*", "tree_sizes=7 7 7", text))  # LightGBM calls abort()
    with pytest.raises(
        ConversionFailed, match=r"^onnx: lightgbm to onnx: the process was killed by SIGABRT: .*LightGBM"
    ):
        convert(tmp_path / "m.txt", tmp_path / "out", options=quick(tmp_path, x, apart=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.txt", "sample.npz"]


def test_the_model_takes_one_array(tmp_path, cancer):
    x, y = cancer
    skops_io.dump(LogisticRegression(max_iter=5000).fit(x / 1000, y), tmp_path / "m.skops")
    np.savez(tmp_path / "two.npz", a=x[:4], b=x[:4])
    with pytest.raises(InvalidRequest, match="one array"):
        convert(tmp_path / "m.skops", tmp_path / "out", options=Options(sample=tmp_path / "two.npz"))
    with pytest.raises(InvalidRequest, match="expected shape"):
        converted(tmp_path / "m.skops", tmp_path, x[:, :7])
