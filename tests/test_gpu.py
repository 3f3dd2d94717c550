"""The measurement for cards works, which is tried on whatever this machine has with the sizes turned down."""


def test_the_whole_chain_is_measured(gpu, tmp_path):
    vision = {
        **gpu.VISION,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 128,
    }
    text = {
        **gpu.TEXT,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    found = gpu.measure(
        gpu.random_model(tmp_path / "model", vision, text), tmp_path, gpu.Sizes(train=16, test=4, steps=4)
    )
    assert found["answered"] == {"likelihood": 4, "letter": 4, "generate": 4}
    assert found["loss"]["last, interrupted and resumed"] == found["loss"]["last"] < found["loss"]["first"]
    assert found["logits_apart"]["loaded"] == 0 and found["logits_apart"]["merged"] < 1e-4
    assert found["samples_per_second"].keys() == {"cached", "plain"} and found["skipped_steps"] == 0
