"""Where artifacts are made before they get their names."""

import pytest

from cluster.errors import InvalidRequest
from converters.build import work_folder


@pytest.mark.parametrize("out", [".", "..", "made/.."])
def test_a_place_that_cannot_be_renamed_to_is_refused_before_anything_is_converted(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRequest, match="name of a folder"), work_folder(type(tmp_path)(out)):
        pass
    assert not any(tmp_path.iterdir())
