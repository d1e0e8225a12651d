import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray._private.label_utils import validate_label_selector

from cluster.documents import DeploySettings
from cluster.errors import InvalidRequest
from cluster.selectors import check_selector, parse_selectors, selects, shown
from cluster.settings import RaySettings, Settings


def test_rays_own_labels_may_be_written_without_their_prefix():
    assert parse_selectors(["accelerator-type=A100", "pool=in(a, b)"]) == {
        "ray.io/accelerator-type": "A100",
        "pool": "in(a,b)",
    }
    assert shown(parse_selectors(["pool=!spot", "accelerator-type=A100"])) == "pool=!spot, accelerator-type=A100"


@pytest.mark.parametrize(
    ("wanted", "found", "fits"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("a", None, False),
        ("!a", "a", False),
        ("!a", None, True),
        ("in(a,b)", "b", True),
        ("in(a,b)", "c", False),
        ("!in(a,b)", "c", True),
        ("!in(a,b)", "a", False),
    ],
)
def test_a_value_a_negation_and_a_list_select_as_they_read(wanted, found, fits):
    assert selects({"k": wanted}, {} if found is None else {"k": found}) is fits


@pytest.mark.parametrize("text", ["A100", "=x", "k=", "k=a b!", "k=in()", "k=in(a", "a/b/c=x", "-k=x"])
def test_what_ray_would_not_take_is_refused_by_name(text):
    with pytest.raises(InvalidRequest, match=r"^(on|deploy\.on)"):
        parse_selectors([text])


def test_a_label_given_twice_is_refused():
    with pytest.raises(InvalidRequest, match="twice"):
        parse_selectors(["k=a", "k=b"])


SYNTAX = st.text(st.sampled_from("aZ1.-_/!(),i n"), max_size=12)


@given(SYNTAX, SYNTAX | st.builds("{}in({})".format, st.sampled_from(["", "!"]), SYNTAX))
def test_ray_takes_whatever_we_let_through(label, value):
    try:
        check_selector(label, value)
    except InvalidRequest:
        return
    assert validate_label_selector({label: value}) is None


@pytest.mark.parametrize("value", ["A100", "!A100", "in(A100,H100)", "!in(A100,H100)"])
def test_ray_takes_every_form(value):
    check_selector("ray.io/accelerator-type", value)
    assert validate_label_selector({"ray.io/accelerator-type": value}) is None


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"num_gpus": 1.5}, r"deploy\.num_gpus: expected a share up to 1, or a whole number up to 64, got 1\.5"),
        ({"num_gpus": -1}, r"deploy\.num_gpus"),
        ({"num_gpus": 1, "accelerator": "cpu"}, r"deploy\.num_gpus: expected 0 with accelerator cpu, got 1"),
        ({"accelerator": "tpu"}, r"deploy\.accelerator: expected auto, cpu or gpu, got tpu"),
        ({"memory_bytes": -5}, r"deploy\.memory_bytes"),
        ({"num_cpus": 5000}, r"deploy\.num_cpus: expected 0 to 1024, got 5000"),
        ({"on": {"zone": "a b"}}, r"deploy\.on\[zone\]"),
    ],
)
def test_impossible_resources_are_one_line_that_names_the_field(settings, told):
    with pytest.raises(InvalidRequest, match=told) as raised:
        DeploySettings(**settings)
    assert "\n" not in raised.value.message


@pytest.mark.parametrize(("label", "value"), [("a b", "x"), ("pool", "x y"), ("pool", "in(a)"), ("pool", "")])
def test_a_node_label_that_ray_would_not_take_is_refused_by_name(label, value):
    with pytest.raises(InvalidRequest, match=r"settings\.ray\.labels"):
        Settings(ray=RaySettings(labels={label: value}))
    assert Settings(ray=RaySettings(labels={"ray.io/market-type": "spot"}))
