"""Read the length that a request asks for out of its own words, in English and Chinese."""

import math
from dataclasses import dataclass
from itertools import islice

import regex

MIN_WORDS = 10
"""Smaller numbers speak of phrases ("in 3 words", 四字成语), not of the length of a piece of writing."""
_NEAR = 40
"""Characters before and after a number in which its qualifier is looked for."""

# One character for one: full-width digits, and traditional characters of the phrases looked for below.
_PLAIN = str.maketrans("０１２３４５６７８９．～－＋個萬兩於過內詞數約寫", "0123456789.~-+个万两于过内词数约写")
_SCALES = {"十": 10, "百": 100, "k": 1000, "千": 1000, "thousand": 1000, "hundred": 100, "w": 10_000, "万": 10_000}
_DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_NAMES = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_NAMES |= {"twelve": 12, "fifteen": 15, "twenty": 20}

_ARABIC = r"\d{1,7}(?:,\d{3})*+(?:\.\d+)?+(?:万\d千|\s?(?:[万千百]|[kKwW](?![a-zA-Z])|(?i:thousand|hundred)\b))?+"
_NAMED = r"(?i:\b(?:" + "|".join(_NAMES) + r")[ -](?:hundred|thousand))\b"
_HAN_NUMERAL = "零〇一二两三四五六七八九十百千万"
_NUMERAL = rf"(?<![{_HAN_NUMERAL}几数多上])(?![零〇])[{_HAN_NUMERAL}]++"
_NUMBER = rf"(?:{_ARABIC}|{_NAMED}|{_NUMERAL})"
_TO = r"\s*(?:-|–|—|~|至|到|\bto\b|\band\b)\s*"
_EN_UNIT = r"[-\s]{0,2}(?i:(?:english|total|more)\s+)?(?i:words?\b(?!-)|chinese characters\b)"
_ZH_UNIT = (
    r"\s*(?:多|余)?个?(?:中文|汉|英文)?(?:字(?![母符节典段体型号形幕架路绣军])(?!文(?![章案稿本言]))"
    r"|单?词(?![条语汇典性组牌]))"
)
_UNIT = rf"(?:{_EN_UNIT}|{_ZH_UNIT})"
# A count named before its number needs no unit behind it: "word count: 800", 字数要求：2000左右.
_HEAD = rf"(?:(?i:\bword\s+(?:count|limit|length)\b)[^\d\n.;]{{0,24}}?|字数[^\d\n。；{_HAN_NUMERAL}]{{0,10}}?)"
_SINGLE = rf"(?<first>{_NUMBER})(?:(?:{_UNIT})?{_TO}(?<second>{_NUMBER}))?+"
_MORE = r"(?<more>\s?\+|\s+plus(?=\s))?"
_MENTION = regex.compile(rf"(?<![A-Za-z第]|\d[.,]?)(?:{_SINGLE}{_MORE}{_UNIT})|{_HEAD}{_SINGLE}{_MORE}(?:{_UNIT})?")

# Looked for right before the number, in this order: a negation decides before the word that it negates.
_BEFORE = tuple(
    (kind, regex.compile(rf"(?:{words})(?:\s|了|:|：|大?约|of|a|is|about|around)*$", regex.IGNORECASE))
    for kind, words in (
        ("lower", r"\b(?:no|not)\s+(?:less|fewer|shorter|under|below)(?:\s+than)?"),
        ("lower", r"不(?:得|能|要|应|可)?[少低小短]于"),
        (
            "upper",
            r"\b(?:no|not)\s+(?:more|longer|greater|over|above)(?:\s+than)?|(?:\bnot|n't|\bwithout)\s+exceed(?:ing)?",
        ),
        ("upper", r"不(?:得|能|要|应|可)?(?:超过|超出|[多高大长]于)|[至最]多|限(?:制?在)?|上限"),
        ("lower", r"\b(?:at\s+(?:least|lease)|(?:more|longer|greater)\s+than|over|above|exceed(?:ing|s)?|minimum)"),
        ("lower", r"至少|最少|起码|超过|[多高大]于|不下|下限"),
        (
            "upper",
            r"\b(?:at\s+most|(?:less|fewer|shorter)\s+than|up\s+to|under|below|within|max(?:imum)?|limit(?:ed)?\s+to)",
        ),
        ("upper", r"[少低小]于"),
    )
)
_AFTER = tuple(
    (kind, regex.compile(rf"^[\s,(（]*(?:{words})", regex.IGNORECASE))
    for kind, words in (
        ("lower", r"or\s+(?:more|longer|above)\b|(?:at\s+)?minimum\b|min\b|at\s+least\b|及?或?以上|起(?!来)"),
        ("upper", r"or\s+(?:less|fewer|under|below|shorter)\b|(?:at\s+)?max(?:imum)?\b|at\s+most\b"),
        ("upper", r"[之以]?内|及?或?以下|为限|封顶"),
    )
)
# A part's length is not the whole's; a length that describes what is given is not asked for.
_FILLER = r"(?:字数|内容|长度|篇幅|[应要需写为在:：\s]|控制|大?约|大概|至少|最多|不[少低多]于|不超过)*"
_NOT_ASKED_BEFORE = regex.compile(
    r"\b(?:each|every)\b[^.,;!?\n]{0,30}$"
    r"|\b(?:this|that|these|those|following|above|attached|given|first|last|top|worth|chapter|page)\s+$"
    r"|\b(?:list|glossary|vocabulary|dictionary|password|passphrase|set|read|reads|learn|memori[sz]e|know)\s+"
    r"(?:of\s+)?(?:(?:about|around|at least|the)\s+)*$"
    rf"|(?:每|各)(?:一)?(?:篇|段|章|节|部分|天|条|则|首|封|集|幕|项|点|人|页|题|个[^，。；,;：:\n]{{0,4}})?{_FILLER}$"
    r"|(?:这|那|下面|以下|上述|上面|该)的?(?:篇|段|个|份|一篇|一段)?\s*$",
    regex.IGNORECASE,
)
_NOT_ASKED_AFTER = regex.compile(
    r"^[\s,(（]*(?:each|apiece|per|a\s+minute|for\s+(?:each|every)|in\s+each|problems?|search|puzzles?|list|"
    r"starting|beginning|ending|rhyming)\b|^\s*(?:每|/|／)",
    regex.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class _Mention:
    kind: str
    """about, lower, upper, or between."""
    first: float
    second: float
    start: int
    stop: int

    def range(self) -> tuple[int, int]:
        """Apply the paper's rules; ends are rounded inwards, so that none is beyond the 10%."""
        n = self.first
        if self.kind == "between":
            low, high = sorted((n, self.second))
            return math.ceil(low), math.floor(high)
        low = n if self.kind == "lower" else math.ceil(round(n * 0.9, 6))
        high = n if self.kind == "upper" else math.floor(round(n * 1.1, 6))
        return math.ceil(low), math.floor(high)


def read_length_range(request_text: str) -> tuple[int, int] | None:
    """Return the (L_lower, L_upper) in words or Chinese characters that a request states, or None.

    The rules of arXiv 2506.18841: a number N gives N ± 10%, "no more than N" gives [0.9 N, N], "at least N" gives
    [N, 1.1 N], and two numbers give themselves. The first statement counts, joined with the next one where one bounds
    from below and the other from above. What is said of each part ("100 words each", 每篇400字), of a text that is
    given ("this 5000-word article") or of vocabulary ("a list of 50 words") is not the length of the whole.

    Example: "Write about 800 words" -> (720, 880); "不少于2000字" -> (2000, 2200); "Tell me a story" -> None.
    """
    text = request_text.translate(_PLAIN)
    found = (_mention(text, match) for match in _MENTION.finditer(text))
    mentions = list(islice((m for m in found if m is not None), 2))
    if not mentions:
        return None
    head = mentions[0]
    if len(mentions) > 1:
        other = mentions[1]
        if {head.kind, other.kind} == {"lower", "upper"} and other.start - head.stop <= _NEAR:
            low, high = (head.first, other.first) if head.kind == "lower" else (other.first, head.first)
            if low <= high:
                return math.ceil(low), math.floor(high)
    return head.range()


def _mention(text: str, match: regex.Match[str]) -> _Mention | None:
    """Turn a match into a statement of the whole's length, or None where it is something else."""
    first = _value(match["first"])
    second = _value(match["second"]) if match["second"] else None
    if first is None or (match["second"] and second is None):
        return None
    start = match.start("first")
    before, after = text[max(0, start - _NEAR) : start], text[match.end() : match.end() + _NEAR]
    if _NOT_ASKED_BEFORE.search(before) or _NOT_ASKED_AFTER.search(after):
        return None
    kind = "about"
    if second is not None:
        kind, first = "between", _share_scale(first, match["second"], second)
    else:
        kind = next((k for k, p in _BEFORE if p.search(before)), kind)
        if kind == "about":
            kind = next((k for k, p in _AFTER if p.search(after)), "lower" if match["more"] else kind)
    if min(first, second if second is not None else first) < MIN_WORDS:
        return None
    return _Mention(kind, first, second if second is not None else first, start, match.end())


def _share_scale(first: float, second_text: str, second: float) -> float:
    """Give the first of two numbers the second's scale where it was said once: "2-3k words", 1到2万字."""
    scale = next((v for k, v in sorted(_SCALES.items(), key=lambda i: -i[1]) if second_text.lower().endswith(k)), 1)
    return first * scale if scale > 1 and first < second / scale else first


def _value(number: str) -> float | None:
    """Read a number as `_NUMBER` finds it; None for Chinese numerals that are no plain number (七八百)."""
    number = number.strip().lower()
    if number[0].isdigit():
        return _arabic(number)
    if number[0].isascii():
        name, scale = regex.split(r"[ -]", number)
        return float(_NAMES[name] * _SCALES[scale])
    return _chinese(number)


def _arabic(number: str) -> float:
    """Read digits with thousands commas, a decimal point and scales: 2,000, 1.5万, 1万5千, 2k, 3 thousand."""
    total = 0.0
    for digits, scale in regex.findall(r"([\d.,]+)\s*([^\d.,\s]*)", number):
        total += float(digits.replace(",", "")) * _SCALES.get(scale, 1)
    return total


def _chinese(number: str) -> float | None:
    """Read Chinese numerals below a hundred million: 八百, 两千五, 一万二千, 万."""
    total, section, digit, last_scale = 0, 0, None, 1
    for char in number:
        if char in _DIGITS:
            if digit:
                return None
            digit = _DIGITS[char]
            last_scale = 10 if digit == 0 else last_scale
        elif char == "万":
            total, section, digit, last_scale = total + (section + (digit or 0) or 1) * 10_000, 0, None, 10_000
        else:
            last_scale = _SCALES[char]
            section, digit = section + (1 if digit is None else digit) * last_scale, None
    # 两千五 is 2500: a last digit without a scale stands one scale below the one before it.
    return float(total + section + (digit or 0) * (last_scale // 10 or 1))
