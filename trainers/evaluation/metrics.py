"""Metrics by kept libraries, with the averages that Muster reports."""

from __future__ import annotations


def classification(actual: list[int], predicted: list[int], labels: int) -> dict[str, float]:
    """Accuracy, and F1 averaged over the labels that occur in `actual` or `predicted` (scikit-learn's macro average)."""
    from sklearn.metrics import accuracy_score, f1_score

    if not actual:
        return {"accuracy": 0.0, "macro_f1": 0.0}
    return {
        "accuracy": float(accuracy_score(actual, predicted)),
        "macro_f1": float(f1_score(actual, predicted, average="macro", zero_division=0.0)),
    }
