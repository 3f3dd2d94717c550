"""The model: what it sees, cached generation, and the transformers conventions."""

import copy

import pytest
import timm
import tinyvlm
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from mmlora.adapters.lora import attach
from mmlora.models.vlm import VLM
from mmlora.smolbridge.model import SmolBridgeConfig, SmolBridgeModel, without_norms
from mmlora.smolbridge.processor import SmolBridgeProcessor
from mmlora.smolbridge.words import words_read

TEXTS = ("<image>Which colour has the left square?", "Is blue a colour", "What?<image> Red or green or something else?")
PICTURES = (tinyvlm.picture("red", "blue"), None, tinyvlm.picture("green", "black"))


@pytest.fixture(scope="module")
def batch(tiny_vlm):
    """Picture, none, picture; left-padded to the longest."""
    pictures = [p for p in PICTURES if p is not None]
    return tiny_vlm.processor(images=pictures, text=list(TEXTS), padding=True, padding_side="left")


def alone(vlm, row: int):
    picture = PICTURES[row]
    return vlm.processor(images=None if picture is None else [picture], text=TEXTS[row])


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


# Sight.


def test_the_processor_gives_each_picture_its_slots(tiny_vlm, batch):
    assert SmolBridgeConfig().visual_tokens == 24 and tiny_vlm.model.config.visual_tokens == 4
    assert (batch["input_ids"] == tiny_vlm.model.config.image_token_id).sum(-1).tolist() == [4, 0, 4]
    assert batch["pixel_values"].shape == (2, 3, 128, 128)
    assert batch["pixel_values"].min() >= -1 and batch["pixel_values"].max() <= 1


def test_every_part_of_the_picture_can_change_the_answer(tiny_vlm):
    plain = tinyvlm.picture("white")
    corners = [plain.copy() for _ in range(4)]
    for corner, (x, y) in zip(corners, ((0, 0), (60, 0), (0, 45), (60, 45))):
        corner.paste("red", (x, y, x + 25, y + 20))
    data = tiny_vlm.processor(images=[plain, *corners], text=["<image> what?"] * 5)
    logits = tiny_vlm.model(**data).logits[:, -1]
    differences = (logits[:, None] - logits[None]).abs().amax(-1) + torch.eye(5)
    assert differences.min() > 1e-3


def test_every_visual_token_is_made_of_every_cell(tiny_vlm):
    connector = tiny_vlm.model.model.connector
    cells = torch.randn(1, 16, connector.describe.in_features, generator=torch.Generator().manual_seed(0))
    for cell in range(16):
        changed = cells.clone()
        changed[0, cell] *= -1
        assert ((connector(cells) - connector(changed)).abs().amax(-1) > 1e-4).all()


def test_folded_norms_compute_the_same():
    tower = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(2, 3, 4)).eval()
    generator = torch.Generator().manual_seed(0)
    for norm in (m for m in tower.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        for tensor, low in ((norm.weight, 0.5), (norm.running_var, 0.5), (norm.bias, -0.5), (norm.running_mean, -0.5)):
            tensor.uniform_(low, low + 1, generator=generator)
    pixels = torch.randn(2, 3, 64, 64, generator=generator)
    expected = tower(pixels)
    folded = without_norms(copy.deepcopy(tower))
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    for ours, theirs in zip(folded(pixels), expected):
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_a_visual_token_is_the_mixture_of_the_words_that_were_read(tiny_vlm, batch):
    core = tiny_vlm.model.model
    chances = core.get_image_words(batch["pixel_values"])
    assert chances.shape == (2, 4, 40) and torch.allclose(chances.sum(-1), torch.ones(2, 4))
    words = core.language_model.embed_tokens.weight[core.connector.word_ids]
    assert torch.allclose(
        core.get_image_features(batch["pixel_values"]), torch.einsum("btw,wh->bth", chances, words), atol=1e-6
    )


def test_what_was_read_is_not_rounded_under_autocast(tiny_vlm, batch):
    core, expected = tiny_vlm.model.model, tiny_vlm.model.model.get_image_words(batch["pixel_values"])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(core.get_image_words(batch["pixel_values"]), expected)


def test_pictures_are_seen_alike_in_any_number(tiny_vlm):
    """The tower runs a few pictures at a time."""
    core, pixels = tiny_vlm.model.model, torch.randn(6, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    together = core.get_image_view(pixels)[0]
    assert together.shape[:2] == (6, 16)
    assert torch.allclose(together, torch.cat([core.get_image_view(p[None])[0] for p in pixels]), atol=1e-4)


def test_each_row_is_answered_as_if_alone(tiny_vlm, batch):
    together = tiny_vlm.model(**batch).logits
    for row in range(3):
        single = tiny_vlm.model(**alone(tiny_vlm, row)).logits[0]
        assert torch.allclose(together[row, -len(single) :], single, atol=1e-4)


def test_padding_on_either_side_changes_nothing(tiny_vlm, batch):
    pictures = [p for p in PICTURES if p is not None]
    right = tiny_vlm.processor(images=pictures, text=list(TEXTS), padding=True, padding_side="right")
    lengths = right["attention_mask"].sum(-1).tolist()
    assert len(set(lengths)) == 3
    ends = tiny_vlm.model(**right).logits[range(3), [n - 1 for n in lengths]]
    assert torch.allclose(ends, tiny_vlm.model(**batch).logits[:, -1], atol=1e-4)


# Generation.


def test_generation_is_the_same_with_cache_without_and_one_by_one(tiny_vlm, batch):
    settings = dict(max_new_tokens=10, min_new_tokens=10, do_sample=False)
    width = batch["input_ids"].shape[1]
    cached = tiny_vlm.model.generate(**batch, **settings)[:, width:]
    assert cached.shape == (3, 10) and len({tuple(row) for row in cached.tolist()}) == 3
    assert torch.equal(cached, tiny_vlm.model.generate(**batch, **settings, use_cache=False)[:, width:])
    for row in range(3):
        data = alone(tiny_vlm, row)
        single = tiny_vlm.model.generate(**data, **settings)[0, data["input_ids"].shape[1] :]
        assert single.tolist() == cached[row].tolist()


def test_generation_says_what_the_plain_model_finds_likeliest(tiny_vlm):
    data = alone(tiny_vlm, 0)
    said = tiny_vlm.model.generate(**data, max_new_tokens=6, min_new_tokens=6, do_sample=False)[0]
    for end in range(len(said) - 6, len(said)):
        logits = tiny_vlm.model(said[None, :end], pixel_values=data["pixel_values"]).logits[0, -1]
        logits[tiny_vlm.model.generation_config.eos_token_id] = -torch.inf
        assert int(logits.argmax()) == said[end]


def test_beams_take_their_own_pictures_along(tiny_vlm, batch):
    """Beam search repeats every row; the pictures must follow their rows."""
    settings = dict(max_new_tokens=4, min_new_tokens=4, do_sample=False, num_beams=2)
    width = batch["input_ids"].shape[1]
    together = tiny_vlm.model.generate(**batch, **settings)[:, width:].tolist()
    for row in range(3):
        data = alone(tiny_vlm, row)
        assert tiny_vlm.model.generate(**data, **settings)[0, data["input_ids"].shape[1] :].tolist() == together[row]


# Transformers' conventions.


def test_saved_and_loaded_it_gives_the_same_bits(tiny_vlm, batch, tmp_path):
    tiny_vlm.model.save_pretrained(tmp_path)
    tiny_vlm.processor.save_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(model) is type(tiny_vlm.model) and type(processor) is SmolBridgeProcessor
    assert not model.training
    assert model.lm_head.weight is model.get_input_embeddings().weight
    data = processor(images=[p for p in PICTURES if p], text=list(TEXTS), padding=True, padding_side="left")
    assert data.keys() == batch.keys() and all(torch.equal(data[key], batch[key]) for key in data)
    expected = tiny_vlm.model(**batch)
    assert torch.equal(model(**data).logits, expected.logits)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    assert processor.apply_chat_template(chat) == tiny_vlm.processor.apply_chat_template(chat)
    core = AutoModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(core) is SmolBridgeModel and torch.equal(core(**batch)[0], tiny_vlm.model.model(**batch)[0])


def test_the_loss_is_the_shifted_cross_entropy_of_the_labels(tiny_vlm, batch):
    labels = batch["input_ids"].clone()
    labels[:, :-6] = -100
    output = tiny_vlm.model(**batch, labels=labels)
    by_hand = [
        -output.logits[row, at - 1].double().log_softmax(-1)[labels[row, at]]
        for row in range(3)
        for at in range(labels.shape[1] - 6, labels.shape[1])
    ]
    assert torch.allclose(output.loss.double(), torch.stack(by_hand).mean(), rtol=1e-5)


def test_the_loss_of_labels_is_torchs_on_text(tiny_vlm):
    ids = tiny_vlm.processor(text=["red green blue"])["input_ids"]
    output = tiny_vlm.model(ids, labels=ids)
    assert torch.allclose(output.loss, cross_entropy(output.logits[0, :-1], ids[0, 1:]))


def test_only_the_wanted_logits(tiny_vlm, batch):
    whole = tiny_vlm.model(**batch).logits
    assert torch.allclose(tiny_vlm.model(**batch, logits_to_keep=1).logits, whole[:, -1:], atol=1e-6)
    some = torch.tensor([3, 5])
    assert torch.allclose(tiny_vlm.model(**batch, logits_to_keep=some).logits, whole[:, some], atol=1e-6)


def test_the_vision_tower_stays_in_evaluation_mode(tiny_vlm, batch):
    model = copy.deepcopy(tiny_vlm.model).train()
    assert model.training and model.model.connector.training and model.model.language_model.training
    tower = model.model.vision_tower
    assert not any(module.training for module in tower.modules())
    before = [buffer.clone() for buffer in tower.buffers()]
    model(**batch)
    assert all(torch.equal(a, b) for a, b in zip(before, tower.buffers()))


def test_the_connector_and_the_upper_layers_learn_from_the_answer(tiny_vlm, batch):
    model = copy.deepcopy(tiny_vlm.model)
    with torch.enable_grad():
        model(
            **batch, labels=batch["input_ids"].masked_fill(batch["input_ids"] == model.config.image_token_id, -100)
        ).loss.backward()
    for part in (
        model.model.connector.describe,
        model.model.connector.recognise,
        model.model.connector.write,
        model.model.language_model,
    ):
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters() if p.dim() > 1)


# Pictures and slots that do not match.


def test_marks_and_pictures_must_be_as_many(tiny_vlm):
    with pytest.raises(ValueError, match="has 2 <image> marks but 1 pictures"):
        tiny_vlm.processor(images=[PICTURES[0]], text=["<image> and <image>"])
    with pytest.raises(ValueError, match="has 0 <image> marks but 1 pictures"):
        tiny_vlm.processor(images=PICTURES[0], text="no mark")


def test_slots_without_their_picture_are_an_error(tiny_vlm, batch):
    with pytest.raises(ValueError, match="8 image slots but the pictures give 1 x 4"):
        tiny_vlm.model(**{**batch, "pixel_values": batch["pixel_values"][:1]})
    with pytest.raises(ValueError, match="holds image slots but no picture came with it"):
        tiny_vlm.model(**{**batch, "pixel_values": None})


def test_a_second_picture_in_a_cached_conversation_is_an_error_and_not_overlooked(tiny_vlm, batch):
    past = tiny_vlm.model(**batch, use_cache=True).cache
    twice = torch.cat([batch["attention_mask"]] * 2, dim=1)
    with pytest.raises(ValueError, match="pass pixel_values to the first call"):
        tiny_vlm.model(batch["input_ids"], pixel_values=batch["pixel_values"], cache=past, attention_mask=twice)


def test_a_picture_without_slots_is_an_error(tiny_vlm, batch):
    ids = tiny_vlm.processor(text=["no mark"])["input_ids"]
    with pytest.raises(ValueError, match="0 image slots but the pictures give 2 x 4"):
        tiny_vlm.model(ids, pixel_values=batch["pixel_values"])


# What was read, for people.


def test_what_was_read_can_be_printed_and_an_adapter_does_not_change_it(tiny_vlm):
    vlm, picture = copy.deepcopy(tiny_vlm), tinyvlm.picture("red", "blue")
    connector = vlm.model.model.connector
    connector.word_ids.copy_(
        torch.tensor(vlm.processor.tokenizer(" ".join("abcdefghijklmnopqrst") + " ")["input_ids"][:40])
    )
    said = words_read(vlm, picture)
    pixels = vlm.processor.image_processor([picture], return_tensors="pt")["pixel_values"]
    chances = vlm.model.model.get_image_words(pixels)[0]
    assert [chance for _, chance in said] == pytest.approx(chances.max(-1).values.tolist())
    assert [word for word, _ in said] == [
        vlm.processor.tokenizer.decode(connector.word_ids[i]) for i in chances.argmax(-1)
    ]
    with torch.enable_grad():
        adapted = attach(vlm.model, layers=[3])
    assert words_read(VLM("adapted", adapted, vlm.processor), picture) == said
