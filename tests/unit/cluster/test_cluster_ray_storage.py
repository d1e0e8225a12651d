import pytest

from cluster.errors import InvalidRequest
from cluster.home import Home
from cluster.ray_head import own_environment, stored
from cluster.ray_storage import URL_VARIABLE, RayStorage
from cluster.settings import RaySettings, Settings, settings_from, with_environment


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://10.0.0.9", "redis://10.0.0.9:6379"),
        ("redis://redis.example.com:6380/", "redis://redis.example.com:6380"),
        ("rediss://redis.example.com:6380/0", "rediss://redis.example.com:6380"),
        ("redis://[::1]:6380", "redis://[::1]:6380"),
        ("redis://:secret@10.0.0.9", "redis://10.0.0.9:6379"),
    ],
)
def test_ray_is_told_of_the_server_without_secrets(url, address):
    assert RayStorage.parse(url).address == address


def test_name_and_password_are_decoded_and_never_shown():
    storage = RayStorage.parse("redis://pri%40sm:s%2Fcr%3At@10.0.0.9")
    assert (storage.username, storage.password) == ("pri@sm", "s/cr:t")
    assert "s/cr" not in repr(storage) and "pri@sm" not in repr(storage)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis://:secret@10.0.0.9/1", "Ray always uses database 0"),
        ("redis://:secret@10.0.0.9/nonsense", "Ray always uses database 0"),
        ("unix:///run/redis.sock", "all that Ray takes"),
        ("10.0.0.9:6379", "all that Ray takes"),
        ("redis://:secret@10.0.0.9?ssl_cert_reqs=none", "without parameters"),
        ("redis://:secret@10.0.0.9:port", "expected redis://"),
        ("redis://prism@10.0.0.9", "a password with the user name"),
    ],
)
def test_a_url_that_ray_could_not_use_is_refused_by_the_settings_without_its_secret(url, told):
    with pytest.raises(InvalidRequest, match=told) as refused:
        settings_from({"ray": {"fault_tolerance_url": url}})
    assert refused.value.message.startswith("settings.ray.fault_tolerance_url: expected")
    assert "secret" not in refused.value.message


def test_the_settings_win_over_the_environment_and_an_empty_variable_is_none():
    environ = {URL_VARIABLE: "redis://of-environment"}
    mine = Settings(ray=RaySettings(fault_tolerance_url="redis://of-settings"))
    assert with_environment(mine, environ) == mine
    assert with_environment(Settings(), environ).ray.fault_tolerance_url == "redis://of-environment"
    assert with_environment(Settings(), {URL_VARIABLE: ""}) == Settings()


def test_what_runs_on_ray_is_not_told_where_its_state_is(tmp_path):
    theirs = {URL_VARIABLE: "redis://:s@h", "RAY_REDIS_ADDRESS": "h:1", "RAY_external_storage_namespace": "theirs"}
    environ = own_environment(Home(tmp_path), theirs)
    assert not theirs.keys() & environ.keys()
    assert stored(environ, "redis://:s@h", "mine")["RAY_external_storage_namespace"] == "mine"
