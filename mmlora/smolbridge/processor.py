"""SmolBridge's processor: text with picture marks and pictures become what the model takes."""

from __future__ import annotations

from transformers import BatchFeature, ProcessorMixin
from transformers.image_utils import make_flat_list_of_images

from mmlora.problems.pictures import rgb

IMAGE_TOKEN = "<image>"
#: SmolLM2's own template, without its system prompt (every prompt token costs time) and with pictures.
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class SmolBridgeProcessor(ProcessorMixin):
    """Text with `<image>` marks plus pictures → `input_ids`, `attention_mask`, `pixel_values`."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, visual_tokens: int = 24, **kwargs):
        self.visual_tokens = visual_tokens
        self.image_token = IMAGE_TOKEN
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

    def __call__(self, images=None, text=None, *, padding=False, padding_side=None, return_tensors="pt", **kwargs):
        """`images`: a list of PIL pictures, or one such list a text; one for each `<image>` in `text`, in order.

        Raises ValueError when the counts differ. Nothing is ever truncated.
        """
        texts = [text] if isinstance(text, str) else list(text)
        pictures = [] if images is None else make_flat_list_of_images(images)
        marks = sum(t.count(IMAGE_TOKEN) for t in texts)
        if marks != len(pictures):
            raise ValueError(f"the text has {marks} {IMAGE_TOKEN} marks but {len(pictures)} pictures came with it")
        texts = [t.replace(IMAGE_TOKEN, IMAGE_TOKEN * self.visual_tokens) for t in texts]
        data = dict(self.tokenizer(texts, padding=padding, padding_side=padding_side, return_tensors=return_tensors))
        if pictures:
            data["pixel_values"] = self.image_processor([rgb(p) for p in pictures], return_tensors=return_tensors)[
                "pixel_values"
            ]
        return BatchFeature(data)

    @property
    def model_input_names(self):
        return ["input_ids", "attention_mask", "pixel_values"]
