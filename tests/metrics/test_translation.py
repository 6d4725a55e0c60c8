"""BLEU and chrF equal sacrebleu's, ROUGE equals rouge-score's, on real sentences and on any text at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from warmstart.errors import DataError, UsageError
from warmstart.metrics import bleu, chrf, chrf_scores, mean, rouge_scores
from warmstart.metrics.translation import tokenize_13a
from warmstart.randomness import generator

DATA = Path(__file__).parents[3] / "shared" / "data" / "translation" / "test.jsonl"
ROUGES = ["rouge1", "rouge2", "rougeL"]

# Few different letters, so that n-grams meet; punctuation, digits and entities, which 13a splits; spaces of all kinds.
_TEXTS = st.text(st.sampled_from("ab ä.,-'\"!1 2&;:\n\t\u00a0Z")) | st.text(st.sampled_from("ab "), max_size=30)
_PIECES = st.sampled_from(["&quot;", "&amp;", "&lt;", "<skipped>", "-\n", "3.5", ",a", "b.", "1-", "{", "~", "|", "ß"])
_TEXT = _TEXTS | st.lists(_PIECES).map("".join) | st.text(max_size=20)
_CORPUS = st.lists(st.tuples(_TEXT, _TEXT), min_size=1, max_size=6)


def check(predictions: list[str], references: list[str]) -> None:
    """Against both packages, as corpora."""
    theirs = sacrebleu.corpus_bleu(predictions, [references], force=True).score
    assert bleu(predictions, references, resamples=100).value == pytest.approx(theirs, abs=1e-9)
    effective = sacrebleu.BLEU(effective_order=True, force=True).corpus_score(predictions, [references]).score
    assert bleu(predictions, references, effective_order=True, resamples=100).value == pytest.approx(
        effective, abs=1e-9
    )
    theirs = sacrebleu.corpus_chrf(predictions, [references]).score
    assert chrf(predictions, references, resamples=100).value == pytest.approx(theirs, abs=1e-9)
    each = [
        sacrebleu.sentence_chrf(given, [wanted]).score for given, wanted in zip(predictions, references, strict=True)
    ]
    assert chrf_scores(predictions, references).tolist() == pytest.approx(each, abs=1e-9)
    scorer, ours = RougeScorer(ROUGES), rouge_scores(predictions, references)
    for i, (given_text, wanted) in enumerate(zip(predictions, references, strict=True)):
        expected = scorer.score(wanted, given_text)
        for name in ROUGES:
            assert ours[name][i] == pytest.approx(expected[name].fmeasure, abs=1e-12)


@given(_CORPUS)
def test_it_is_what_the_packages_say_of_any_text(corpus: list[tuple[str, str]]) -> None:
    check([given_text for given_text, _ in corpus], [wanted for _, wanted in corpus])


@given(_TEXT)
def test_words_are_those_of_13a(text: str) -> None:
    assert tokenize_13a(text) == sacrebleu.BLEU().tokenizer(text.rstrip())


@pytest.mark.real_data
@pytest.mark.skipif(not DATA.exists(), reason="../shared/data is absent")
def test_it_is_what_the_packages_say_of_real_sentences() -> None:
    rows = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    wanted = [row["target"] for row in rows]
    rng = generator(0, "test")
    damaged = [" ".join(word for word in text.split() if rng.random() > 0.2) for text in wanted]
    for predictions in (damaged, [row["source"] for row in rows], wanted[1:] + wanted[:1]):
        check(predictions, wanted)
    found = bleu(damaged, wanted)
    assert found.lo < found.value < found.hi


def test_the_interval_is_over_rows() -> None:
    """As wide as corpora that are drawn from the rows and scored one by one differ."""
    rng = generator(0, "rows")
    wanted = [" ".join(rng.choice(list("abcdefgh"), 9)) for _ in range(60)]
    given_texts = [text if rng.random() < 0.5 else text[::-1] for text in wanted]
    drawn = [rng.integers(0, 60, 60) for _ in range(200)]
    for metric, score in ((bleu, sacrebleu.corpus_bleu), (chrf, sacrebleu.corpus_chrf)):
        found = metric(given_texts, wanted)
        plain = [score([given_texts[i] for i in rows], [[wanted[i] for i in rows]]).score for rows in drawn]
        low, high = np.quantile(plain, [0.025, 0.975])
        assert (found.lo, found.hi) == (pytest.approx(low, abs=4), pytest.approx(high, abs=4))


def test_what_is_perfect_and_what_is_nothing() -> None:
    texts = ["a cat sat on the mat .", "it rained all day long"]
    assert bleu(texts, texts).as_dict() == pytest.approx({"value": 100, "lo": 100, "hi": 100})
    assert chrf(texts, texts).value == pytest.approx(100)
    assert mean(rouge_scores(texts, texts)["rougeL"]).value == 1
    nothing = ["", ""]
    assert bleu(nothing, texts).value == chrf(nothing, texts).value == bleu(nothing, nothing).value == 0
    assert not any(values.any() for values in rouge_scores(nothing, texts).values())


def test_what_it_cannot_measure() -> None:
    for measure in (bleu, chrf, chrf_scores, rouge_scores):
        with pytest.raises(UsageError) as shapes:
            measure(["a"], [])
        assert shapes.value.code == "metric-shape"
    for measure in (bleu, chrf):
        with pytest.raises(DataError) as none:
            measure([], [])
        assert none.value.code == "no-rows"
    assert chrf_scores([], []).shape == (0,) == np.shape(rouge_scores([], [])["rouge1"])
