"""Random configurations have the promised sizes and take settings by every name."""

from __future__ import annotations

import pytest

from gradleak.models.configs import random_config

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize(
    ("model_type", "sizes"),
    [
        ("gpt2", {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257}),
        ("bert", {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072, "vocab_size": 30522}),
        ("llama", {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}),
        ("mistral", {"num_key_value_heads": 1, "head_dim": 64, "vocab_size": 32000}),
        ("gemma2", {"num_key_value_heads": 2, "head_dim": 64, "vocab_size": 256000}),
        ("distilbert", {"dim": 256, "n_layers": 4, "n_heads": 4, "hidden_dim": 1024}),
        ("opt", {"hidden_size": 256, "word_embed_proj_dim": 256, "ffn_dim": 1024}),
        ("vit", {"hidden_size": 256, "num_hidden_layers": 4, "image_size": 224}),
    ],
)
def test_random_models_have_the_promised_sizes(model_type: str, sizes: dict[str, int]) -> None:
    config = random_config(model_type, {})
    assert {key: getattr(config, key) for key in sizes} == sizes


def test_settings_reach_the_configuration_by_own_name_and_by_alias_and_the_rest_follows() -> None:
    by_alias = random_config("gpt2", {"hidden_size": "128", "num_attention_heads": 4, "num_hidden_layers": "2"})
    by_name = random_config("gpt2", {"n_embd": 128, "n_head": "4", "n_layer": 2})
    assert by_alias.to_dict() == by_name.to_dict()
    assert (by_alias.n_embd, by_alias.n_head, by_alias.n_layer) == (128, 4, 2)
    followed = random_config("mistral", {"hidden_size": 64, "num_attention_heads": 8})
    assert (followed.intermediate_size, followed.head_dim, followed.num_key_value_heads) == (256, 8, 2)
    given = random_config("mistral", {"hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 4})
    assert (given.intermediate_size, given.num_key_value_heads) == (96, 4)
    assert random_config("distilbert", {"intermediate_size": 99}).hidden_dim == 99
