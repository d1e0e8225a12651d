from pathlib import Path

from cluster.settings import read_settings

CONFIG = Path(__file__).parents[3] / "config"


def test_every_settings_file_that_ships_is_accepted():
    files = sorted(CONFIG.glob("*.yaml"))
    assert files
    for file in files:
        read_settings(file)
    assert read_settings(CONFIG / "container.yaml").http.host == "0.0.0.0"
