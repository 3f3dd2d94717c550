"""dpo is TRL's: the loss, the adapter's gradients and the rewards of the same pairs."""

import copy

import families
import pytest
import torch
from datasets import Dataset
from test_objectives import PAIRS, adapted, stirred
from tinyvlm import picture

from mmlora.encoding.loss import IGNORED
from mmlora.encoding.sample import collate
from mmlora.encoding.samples import Samples
from mmlora.training.objectives.dpo import DPO
from mmlora.training.objectives.pairs import PreferencePairs, both_replies

trl = pytest.importorskip("trl")

CHOSEN, REJECTED = [0, 2, 4, 6], [1, 3, 5, 7]  # their order: first all chosen replies, then all rejected ones
FORMS = {
    "sigmoid": DPO(beta=0.3),
    "sigmoid_norm": DPO(beta=2.0, per_token=True),
}


def their_trainer(vlm, model, form, beta, folder):
    """TRL's, around a copy of the model; its data set only tells it whether there are pictures."""
    pair = {"prompt": "Which?", "chosen": "red", "rejected": "green"}
    if families.FAMILIES[vlm.name].sees:
        pair = {
            name: [{"role": "user" if name == "prompt" else "assistant", "content": text}]
            for name, text in pair.items()
        }
        pair["images"] = [picture("red")]
    settings = trl.DPOConfig(
        output_dir=str(folder), beta=beta, loss_type=[form], max_length=None, report_to="none", bf16=False,
        gradient_checkpointing=False, disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    processor = vlm.processor if families.FAMILIES[vlm.name].sees else vlm.processor.tokenizer
    processor_tokenizer = getattr(processor, "tokenizer", processor)
    processor_tokenizer.pad_token = processor_tokenizer.pad_token or processor_tokenizer.eos_token
    return trl.DPOTrainer(
        copy.deepcopy(model), args=settings, train_dataset=Dataset.from_list([pair]), processing_class=processor
    )


def follow(trainer, model):
    """Give their trained adapter the values of ours; their reference stays what it was at the start."""
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            trainer.model.get_parameter(name).data.copy_(parameter.data)


@pytest.mark.parametrize("reference", ["base", "start"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["smolvlm", "text-only"])
def test_dpo_is_trls(name, form, reference, tmp_path, one_thread):
    vlm, model = adapted(name)
    if reference == "start":
        stirred(model, seed=2)  # TRL's reference is the adapter that it is given
    settings = DPO(FORMS[form].beta, per_token=FORMS[form].per_token, reference=reference)
    samples = Samples(vlm, both_replies(PAIRS))
    pairs = PreferencePairs.build(model, samples, settings, tmp_path / "reference.safetensors")
    trainer = their_trainer(vlm, model, form, settings.beta, tmp_path / "trl")
    follow(trainer, stirred(model))

    batch = collate([samples[i] for i in CHOSEN + REJECTED])
    batch["completion_mask"] = (batch.pop("labels") != IGNORED).long()
    trainer.model.train()
    theirs = trainer.compute_loss(trainer.model, batch)
    theirs.backward()
    loss, count, metrics = pairs.loss(model.train(), [0, 1, 2, 3])
    (loss / count).backward()
    torch.testing.assert_close(loss / count, theirs, rtol=0, atol=1e-5)

    for own, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, trainer.model.get_parameter(own).grad, rtol=1e-4, atol=1e-5)
            assert parameter.grad.any()
    found = {key: values[-1] for key, values in trainer._metrics["train"].items()}
    assert metrics["accuracy"] / count == found["rewards/accuracies"]
    if form == "sigmoid":  # of the other form TRL reports what the plain rewards would be
        for ours, their_name in (("rewards_chosen", "chosen"), ("rewards_rejected", "rejected"), ("margin", "margins")):
            assert metrics[ours] / count == pytest.approx(found[f"rewards/{their_name}"], abs=1e-5)
