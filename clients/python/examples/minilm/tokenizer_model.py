"""The tokenizer of all-MiniLM-L6-v2 as a `python` model: text in, token ids and mask out."""

import numpy as np
from tokenizers import Tokenizer

from backends.base import InvalidInput

LONGEST = 256  # tokens; what the model was trained with


class Model:
    """Rows of text to rows of ids, padded to the longest row of the batch."""

    inputs = [("text", object, (-1, 1))]
    outputs = [("input_ids", "int64", (-1, -1)), ("attention_mask", "int64", (-1, -1))]

    def load(self, source):
        self.tokenizer = Tokenizer.from_file(str(source.directory / "tokenizer.json"))
        self.tokenizer.enable_truncation(LONGEST)
        self.tokenizer.enable_padding()

    def execute(self, inputs):
        try:
            texts = [text.decode() for text in inputs["text"][:, 0]]
        except UnicodeDecodeError as error:
            raise InvalidInput(f"input 'text': expected UTF-8: {error}") from error
        encoded = self.tokenizer.encode_batch(texts)
        return {
            "input_ids": np.array([row.ids for row in encoded], np.int64),
            "attention_mask": np.array([row.attention_mask for row in encoded], np.int64),
        }
