"""What judges votes without a language model: words, and length. A answers (distinct ones), N votes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from real_votes_data import Split, Votes
from real_votes_intervals import auc
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

STRENGTHS = (0.03, 0.3, 3.0, 30.0)
"""C of the logistic regression, chosen on the inner split."""

MOST_PROMPT_WORDS, MOST_WORDS = 32, 64
"""Distinct words of a prompt and of an answer that are crossed."""

_WORD = re.compile(r"\w\w+")


def lengths(votes: Votes) -> NDArray[np.float64]:
    """Characters of each answer, (A,)."""
    return np.array([len(completion) for _, completion in votes.texts], np.float64)


def bag_of_words(votes: Votes, split: Split, *, crossed: bool) -> tuple[NDArray[np.float64], float]:
    """Log odds of a thumbs-up from TF-IDF of the answer's words, (A,), and the C that was chosen.

    `crossed`: also of every pair of a word of the prompt and a word of the answer.
    """

    inner = _Words(votes, split.inner_train, crossed=crossed)
    strength = max(STRENGTHS, key=lambda C: auc(inner.fitted(C), votes, split.inner_valid))
    return _Words(votes, split.train, crossed=crossed).fitted(strength), strength


def votes_of_others(votes: Votes, split: Split) -> NDArray[np.float64]:
    """Share of thumbs-up among the training side's votes on the very same answer, (A,); a half where there is none."""
    answers, label = votes.answer_N[split.train], votes.label_N[split.train]
    count_A = np.bincount(answers, minlength=len(votes.texts))
    return (np.bincount(answers, label, minlength=len(votes.texts)) + 1) / (count_A + 2)


class _Words:
    """Features in the vocabulary of the votes in `rows`; a row per answer and label, weighing as its votes do."""

    def __init__(self, votes: Votes, rows: NDArray[np.int64], *, crossed: bool) -> None:
        pairs = np.stack([votes.answer_N[rows], votes.label_N[rows]])
        (self._answers, self._label), self._count = np.unique(pairs, axis=1, return_counts=True)
        known = np.unique(self._answers)
        self._features = _tfidf([completion for _, completion in votes.texts], known, ngram_range=(1, 2))
        if crossed:
            self._features = hstack([self._features, _tfidf(votes.texts, known, analyzer=_crossed)]).tocsr()

    def fitted(self, strength: float) -> NDArray[np.float64]:
        """Log odds of every answer, (A,)."""
        model = LogisticRegression(C=strength, class_weight="balanced", max_iter=300)
        model.fit(self._features[self._answers], self._label, sample_weight=self._count)
        scores: NDArray[np.float64] = model.decision_function(self._features)
        return scores


def _tfidf(texts: list[Any], known: NDArray[np.int64], **how: Any) -> csr_matrix:
    """Of all texts, in the vocabulary of the known ones: what at least two of them have."""
    vectorizer = TfidfVectorizer(min_df=2, sublinear_tf=True, **how)
    vectorizer.fit([texts[answer] for answer in known])
    return vectorizer.transform(texts)


def _crossed(texts: tuple[str, str]) -> Iterator[str]:
    asked, said = (list(dict.fromkeys(_WORD.findall(text.lower()))) for text in texts)
    return (f"{word}|{other}" for word in asked[:MOST_PROMPT_WORDS] for other in said[:MOST_WORDS])
