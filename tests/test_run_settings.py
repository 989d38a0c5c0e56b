"""Settings as a line of JSON: what goes out comes in, and nothing else does."""

import json
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from percov2_core.config import CAPTIONERS, EFFORTS, MAX_TOKENS, PRESETS, SCHEDULES
from percov2_core.errors import ConfigError
from percov2_core.run_settings import USUAL, RunSettings

NAMES = [field.name for field in fields(RunSettings)]
text = st.text(st.characters(codec="utf-8"), max_size=40)
kinds = st.one_of(
    st.fixed_dictionaries({"mode": st.sampled_from(["ultra-low", "extreme"])}),
    st.fixed_dictionaries({"mode": st.just("hybrid"), "tokens": st.integers(0, MAX_TOKENS)}),
    st.fixed_dictionaries({"size": st.integers(1, 200_000)}),
)
says = st.one_of(
    st.fixed_dictionaries({"caption": text}),
    st.fixed_dictionaries({"captioner": st.sampled_from(CAPTIONERS)}),
)
others = st.fixed_dictionaries(
    {},
    optional={
        "fit": st.integers(64, 4096),
        "schedule": st.sampled_from(SCHEDULES),
        "effort": st.sampled_from(EFFORTS),
        "seed": st.integers(0, 2**32 - 1),
        "preset": st.sampled_from(PRESETS),
        "steps": st.integers(1, 100),
        "guidance": st.floats(1, 20),
    },
)
settings = st.builds(lambda *parts: RunSettings(**{k: v for p in parts for k, v in p.items()}),
                     kinds, says, others)  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


@given(settings)
def test_settings_survive_the_way_through_one_line_of_json(one):
    line = one.to_json()
    assert RunSettings.from_json(line) == one and len(line.splitlines()) == 1
    assert USUAL.to_json() == "{}" and RunSettings.from_json(" {} ") == USUAL


@given(settings, settings)
def test_a_new_value_takes_the_place_of_what_it_contradicts(one, other):
    given_ = json.loads(other.to_json())
    both = one.replaced(given_)
    assert both.replaced(given_) == both
    assert all(getattr(both, name) == value for name, value in given_.items())


@given(st.dictionaries(st.sampled_from(NAMES) | st.text(), values) | values)
def test_no_json_raises_anything_but_a_config_error_of_one_short_line(value):
    said = ""
    try:
        RunSettings.from_json(json.dumps(value))
    except ConfigError as error:
        said = str(error)
    assert len(said) < 300 and (said.isprintable() or not said)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", 'settings: expected a line of JSON such as {"mode": "extreme"}, got \'\''),
        ("[" * 9_999, "settings: expected a line of JSON such as"),
        ("9" * 9_000, "settings: expected a line of JSON such as"),
        (f'"{"a" * 10**6}"', "settings: expected JSON of at most 10000 letters"),
        ("[1]", "settings: expected an object, got [1]"),
        ('{"modus": 1}', "settings: unknown key 'modus', expected mode, tokens, size, fit, "),
        ('{"steps": 1, "steps": 2}', "settings: key 'steps' is there twice"),
        ('{"mode": "best"}', "mode must be one of ultra-low, extreme, hybrid, got 'best'"),
        (
            '{"mode": ["extreme"]}',
            "mode must be one of ultra-low, extreme, hybrid, got ['extreme']",
        ),
        ('{"steps": 2.0}', "steps must be a whole number in [1, 100], got 2.0"),
        ('{"steps": true}', "steps must be a whole number in [1, 100], got True"),
        ('{"guidance": NaN}', "guidance must be in [1, 20], got nan"),
        ('{"guidance": 1e999}', "guidance must be in [1, 20], got inf"),
        (f'{{"guidance": 1{"0" * 400}}}', "guidance must be in [1, 20], got 1000"),
        ('{"seed": null}', "seed must be a whole number in [0, 4294967295], got None"),
        ('{"preset": null}', "preset must be one of faithful, balanced, vivid, got None"),
        ('{"size": 0}', "size must be in [1, 200000], got 0"),
        ('{"size": 9, "mode": "extreme"}', "size: takes the place of mode extreme, got both"),
        ('{"tokens": 4}', "tokens: needs mode hybrid, got mode extreme"),
        ('{"caption": "\\ud800"}', r"caption: must be text, got '\ud800'"),
        ('{"caption": 7}', "caption: must be text, got 7"),
        ('{"caption": "", "captioner": "blip"}', "caption: takes the place of captioner blip"),
    ],
)
def test_wrong_settings_are_refused_with_the_key_its_value_and_what_was_expected(line, message):
    with pytest.raises(ConfigError) as caught:
        RunSettings.from_json(line)
    assert str(caught.value).startswith(message) and len(str(caught.value)) < 300
