"""Which labels are taken for which: a matrix for a few labels, the most confused pairs for many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from warmstart.report.markup import esc, fixed, plural, section, table
from warmstart.report.predictions import Judged

MOST_LABELS = 30  # a larger matrix cannot be read
_PAIRS = 20


def confusion_part(judged: Judged) -> str:
    """The confusion matrix and the scores by label, or for many labels the worst of both."""
    if judged.sets:
        return section("Labels", _scores(judged.sets), "A row may have several labels; each is scored for itself.")
    if not judged.pairs:
        return ""
    labels = _labels(judged)
    counts = _counts(judged.pairs, labels)
    if len(labels) <= MOST_LABELS:
        lead = "Down: the true label. Across: the predicted one. Shaded by the share of the true label's rows."
        return section("Confusion", _matrix(judged.pairs, labels), lead) + section("Labels", _scores(counts))
    pairs = _worst_pairs(judged.pairs, counts)
    worst = dict(sorted(counts.items(), key=lambda item: (_f1(*item[1]), item[0]))[:_PAIRS])
    return section("Most confused labels", pairs, f"Of {plural(len(labels), 'label')}.") + section(
        "Labels with the lowest F1", _scores(worst)
    )


def _labels(judged: Judged) -> list[str]:
    """The model's labels in its order, then any that only the data has."""
    seen = {label for pair in judged.pairs for label in pair}
    return [*judged.labels, *sorted(seen - set(judged.labels))]


def _counts(pairs: Counter[tuple[str, str]], labels: list[str]) -> dict[str, tuple[int, int, int]]:
    """Per label: rows that have it, rows given it, rows right."""
    true: Counter[str] = Counter()
    given: Counter[str] = Counter()
    for (label, predicted), count in pairs.items():
        true[label] += count
        given[predicted] += count
    return {label: (true[label], given[label], pairs[label, label]) for label in labels}


def _matrix(pairs: Counter[tuple[str, str]], labels: list[str]) -> str:
    head = "".join(f'<th scope="col">{esc(label, 24)}</th>' for label in labels)
    body = []
    for true in labels:
        total = sum(pairs[true, label] for label in labels)
        cells = []
        for predicted in labels:
            count = pairs[true, predicted]
            level = -(-8 * count // total) if total else 0  # 0 … 8, any count above 0 shows
            kind = "hit" if predicted == true else "miss"
            cells.append(f'<td class="{kind} h{level}">{count or "·"}</td>')
        body.append(f'<tr><th scope="row">{esc(true, 24)}</th>{"".join(cells)}</tr>')
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="confusion matrix"><table class="matrix">'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _scores(counts: Mapping[str, tuple[int, int, int]]) -> str:
    rows = [
        [
            esc(label, 80),
            fixed(right / given if given else 0.0),
            fixed(right / true if true else 0.0),
            fixed(_f1(true, given, right)),
            f"{true:,}",
        ]
        for label, (true, given, right) in counts.items()
    ]
    return table(["label", "#precision", "#recall", "#F1", "#rows"], rows)


def _worst_pairs(pairs: Counter[tuple[str, str]], counts: dict[str, tuple[int, int, int]]) -> str:
    wrong = [(pair, count) for pair, count in pairs.items() if pair[0] != pair[1]]
    wrong.sort(key=lambda item: (-item[1], item[0]))
    rows = [
        [esc(true, 80), esc(predicted, 80), str(count), fixed(count / counts[true][0])]
        for (true, predicted), count in wrong[:_PAIRS]
    ]
    return table(["true", "predicted", "#rows", "#share of the true label"], rows) if rows else "<p>No mistakes.</p>"


def _f1(true: int, given: int, right: int) -> float:
    return 2 * right / (true + given) if true + given else 0.0
