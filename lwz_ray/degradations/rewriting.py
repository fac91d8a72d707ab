"""Say a sentence in other words by rule, and check what a model made of it.

A rewrite is accepted where it is neither a near-copy nor about something else, both measured on words (Chinese:
characters). All tables are our own.
"""

from typing import Literal

import numpy as np
import regex

from lwz_ray.degradations.synonyms import CHINESE, CHINESE_LEADS, ENGLISH, ENGLISH_LEADS
from lwz_ray.text import count_words, ngrams, units

Way = Literal["model", "rules"]

MAX_COPIED = 0.7
"""Share of the rewrite's 3-grams that may stand in the sentence too."""
MIN_KEPT = 0.25
"""Share of the sentence's content words that the rewrite has to keep."""
WORD_RATIO = (0.5, 1.8)
"""Words of the rewrite over those of the sentence."""
_STEM = 5
_COMMON = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "been",
        "but",
        "by",
        "did",
        "do",
        "for",
        "from",
        "had",
        "has",
        "have",
        "he",
        "her",
        "his",
        "i",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "me",
        "my",
        "no",
        "not",
        "of",
        "on",
        "or",
        "our",
        "she",
        "so",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "they",
        "this",
        "to",
        "us",
        "was",
        "we",
        "were",
        "what",
        "when",
        "which",
        "who",
        "will",
        "with",
        "would",
        "you",
        "your",
    ]
)
_BACK_CLAUSE = regex.compile(
    r"^(?P<main>[^,;:]+?),? (?P<link>because|when|while|if|although|after|before|until|since|unless) "
    r"(?P<clause>[^,;:]+)$"
)
_FRONT_CLAUSE = regex.compile(
    r"^(?P<link>Because|When|While|If|Although|After|Before|Until|Since|Unless|In|On|At|With|From|For) "
    r"(?P<clause>[^,;:]+), (?P<main>[^;:]+)$"
)
_CHINESE_CAUSE = regex.compile(r"^因为(?P<clause>[^，]+)，(?:所以)?(?P<main>.+)$")
_END = regex.compile(r"[.!?。！？…]+[\"'”’)\]」』）]*$")


def copied_share(sentence: str, rewrite: str) -> float:
    """Return the share of the rewrite's 3-grams that the sentence holds too, in [0, 1]."""
    grams = list(ngrams(units(rewrite.casefold()), 3))
    held = set(ngrams(units(sentence.casefold()), 3))
    return sum(g in held for g in grams) / len(grams) if grams else 1.0


def kept_share(sentence: str, rewrite: str) -> float:
    """Return the share of the sentence's content words whose first five letters the rewrite holds, in [0, 1]."""
    wanted, found = _content(sentence), _content(rewrite)
    return len(wanted & found) / len(wanted) if wanted else 0.0


def accepts(sentence: str, rewrite: str) -> bool:
    """Say whether `rewrite` is the sentence in other words: one line, about as long, not copied, not foreign."""
    if "\n" in rewrite.strip() or not rewrite.strip():
        return False
    ratio = count_words(rewrite) / max(1, count_words(sentence))
    low, high = WORD_RATIO
    return (
        low <= ratio <= high
        and copied_share(sentence, rewrite) <= MAX_COPIED
        and kept_share(sentence, rewrite) >= MIN_KEPT
    )


def tidy(answer: str) -> str:
    """Return a model's rewrite without the quotation marks around it, and with a mark at its end."""
    text = answer.strip()
    if len(text) > 1 and text[0] in '"“' and text[-1] in '"”':
        text = text[1:-1].strip()
    if text and not _END.search(text):
        text += "。" if regex.search(r"\p{Han}$", text) else "."
    return text


def rewrite_by_rules(sentence: str, language: str, rng: np.random.Generator) -> str:
    """Return the sentence with clauses turned, words of the table swapped, and an opening: "In other words"."""
    mark = _END.search(sentence)
    body, end = (sentence[: mark.start()], mark.group()) if mark else (sentence, "。" if language == "zh" else ".")
    if language == "zh":
        cause = _CHINESE_CAUSE.match(body)
        if cause:
            main, clause = _swap_chinese(cause["main"], rng), _swap_chinese(cause["clause"], rng)
            body = f"之所以{main}，是因为{clause}"
        else:
            body = _swap_chinese(body, rng)
        return f"{CHINESE_LEADS[rng.integers(len(CHINESE_LEADS))]}，{body}{end}"
    body = _swap_english(_turn_clauses(body), rng)
    lead = ENGLISH_LEADS[rng.integers(len(ENGLISH_LEADS))]
    return f"{lead}, {_lower_first(body)}{end}"


def swap_one_word(sentence: str, language: str, rng: np.random.Generator) -> str:
    """Return the sentence with one word of the table replaced; as it is where the table knows none of its words."""
    if language == "zh":
        known = [w for w in CHINESE if w in sentence]
        if not known:
            return sentence
        word = known[rng.integers(len(known))]
        return sentence.replace(word, _pick(CHINESE[word], rng), 1)
    places = [m for m in regex.finditer(r"\p{L}+", sentence) if m.group().lower() in ENGLISH]
    if not places:
        return sentence
    place = places[rng.integers(len(places))]
    new = _pick(ENGLISH[place.group().lower()], rng)
    return sentence[: place.start()] + _cased(new, place.group()) + sentence[place.end() :]


def _content(text: str) -> set[str]:
    pieces = units(text.casefold())
    return {p[:_STEM] for p in pieces if p not in _COMMON}


def _turn_clauses(body: str) -> str:
    """Bring a clause from the end to the front, or from the front to the end."""
    back = _BACK_CLAUSE.match(body)
    if back:
        return f"{back['link'].capitalize()} {back['clause']}, {_lower_first(back['main'])}"
    front = _FRONT_CLAUSE.match(body)
    if front:
        return f"{front['main'][0].upper()}{front['main'][1:]} {front['link'].lower()} {front['clause']}"
    return body


def _swap_english(body: str, rng: np.random.Generator) -> str:
    def other(match: regex.Match[str]) -> str:
        word = match.group()
        return _cased(_pick(ENGLISH[word.lower()], rng), word) if word.lower() in ENGLISH else word

    return regex.sub(r"\p{L}+", other, body)


def _swap_chinese(body: str, rng: np.random.Generator) -> str:
    pattern = "|".join(sorted(CHINESE, key=len, reverse=True))
    return regex.sub(pattern, lambda m: _pick(CHINESE[m.group()], rng), body)


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _cased(new: str, old: str) -> str:
    return new[0].upper() + new[1:] if old[0].isupper() else new


def _lower_first(body: str) -> str:
    """Lower the first letter of a word that only stands capital because it opens a sentence."""
    first = body.split(" ", 1)[0]
    opens = first.lower() in _COMMON or first.lower() in ENGLISH or first in ("Because", "When", "While", "After")
    return body if not opens or first == "I" or first.startswith("I'") else body[0].lower() + body[1:]
