"""What the report calls the numbers of `stage=evaluate`, and what scores are grouped by."""

LABELS = {
    "s_l": "S_L, length",
    "s_l_published": "S_L, authors' word counter",
    "s_q": "S_Q, quality",
    "s": "(S_L + S_Q) / 2",
    "overall": "WritingBench, mean of all criteria",
    "writingbench": "WritingBench, mean by request",
    "arena_write": "Arena-Write, mean score",
    "rating": "Arena-Write, rating",
    "num_words": "words",
    "length_ratio": "words written / words asked for",
    "length_error": "length error",
    "repetition": "repetition",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_4": "distinct-4",
    "think_tokens": "tokens of the plan",
    "degenerated": "degenerated",
    "truncated": "cut at the token limit",
    "well_formed": "well formed",
    "empty": "without an answer",
}
NOT_A_RESULT = ", not a result"
UNJUDGED = ("s_l", "s_l_published")
"""The benchmarks' scores that need no judge."""
KINDS = {"length": "words asked for", "language": "language", "type": "type", "domain1": "domain",
         "domain2": "subdomain", "requirement": "requirement", "requirement_c": "requirement, C"}  # fmt: skip
"""What scores are grouped by."""


def label_of(name: str) -> str:
    """Return what tables call a number."""
    return LABELS.get(name, name.replace("s_q_", "S_Q, ").replace("_", " "))
