"""Only this file sees a name on an axis that says another block than the one that was measured."""

import pytest

from blockspectra.plotting.style import short


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("h.0.attn.c_attn.q", "h.0.q"),
        ("wte=lm_head", "wte"),
        ("blocks.1.attn.proj", "1.proj"),
        ("encoder.layer.0.attention.q", "encoder.0.attention.q"),
        ("2.layers.0.self_attn.in_proj_weight.q", "2.layers.0.self_attn.in_proj_weight.q"),
        ("my_blocks.0", "my_blocks.0"),
    ],
)
def test_only_whole_parts_of_a_name_are_left_out(name, shown):
    assert short(name) == shown
