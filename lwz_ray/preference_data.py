"""Preference pairs from a source: validated row by row, split by source text, encoded, in an order one integer resumes.

rows ─▶ bad? ─▶ split by source ─▶ tokens ─▶ kept      every row or pair that goes elsewhere is counted
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lwz_ray.config_stages import PreferenceColumnsConfig, PreferenceConfig
from lwz_ray.errors import UserError
from lwz_ray.pair_encoding import EncodedText, PairEncoder
from lwz_ray.preferences import EncodedPair, PreferencePair
from lwz_ray.sources import BadRow, Row, read_rows


@dataclass(frozen=True, slots=True)
class PairSource:
    """The pairs of one source, and what became of its rows: read = kept + bad_rows."""

    pairs: list[PreferencePair]
    counts: dict[str, int]


@dataclass(frozen=True, slots=True, eq=False)
class PairSet:
    """Pairs with their tokens, and what became of each: pairs = kept + dropped_too_long + left_out."""

    pairs: list[PreferencePair]
    encoded: list[EncodedPair]
    """In the order of `pairs`; `weight` is 1 / preference.pairs_per_step."""
    counts: dict[str, int]
    """`pairs`, `sources` (of the kept), `kept`, `dropped_too_long`, `left_out` (by preference.max_eval_pairs)."""

    @property
    def num_tokens(self) -> int:
        """Count tokens as read alone: both texts of each pair, each with its own request."""
        return sum(2 * e.head.size + e.chosen.size + e.rejected.size for e in self.encoded)


def load_pairs(config: PreferenceConfig, path: str, split: str) -> PairSource:
    """Read a source by `preference.columns`.

    Raises UserError with file, place and reason for a bad row where `preference.on_bad_row` is `error`, for a mapped
    column that no row has, and where no pair is left.
    """
    pairs: list[PreferencePair] = []
    bad = 0
    columns_seen: set[str] = set()
    for row in read_rows(path, split):
        if isinstance(row.content, dict):
            columns_seen.update(row.content)
        try:
            pairs.append(_to_pair(row, config.columns))
        except _BadRowError as error:
            if config.on_bad_row == "error":
                raise UserError(
                    f"{path}, {row.place}: {error}; correct it, or leave such rows out with preference.on_bad_row=skip"
                ) from error
            bad += 1
    _check_columns(config.columns, columns_seen, path)
    if not pairs:
        lost = f" ({bad} bad_rows)" if bad else ""
        raise UserError(f"{path} holds no preference pair{lost}; name another source with preference.path")
    return PairSource(pairs, {"read": len(pairs) + bad, "kept": len(pairs), "bad_rows": bad})


def split_pairs(
    config: PreferenceConfig, seed: int, found: PairSource, held_out: PairSource | None
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Return training and held-out pairs; no source is on both sides.

    found: the pairs of `preference.path`; held_out: those of `preference.eval_path`, or None to hold out
    `preference.held_out_share` of the sources of `found` (at least one), drawn by the seed alone.
    Raises UserError where a source is on both sides, or only one source is there to split.
    """
    if held_out is not None:
        train_sources = {p.source for p in found.pairs}
        both = sorted({p.source for p in held_out.pairs} & train_sources)
        if both:
            raise UserError(
                f"preference.eval_path={config.eval_path}: {len(both)} of its sources are also in preference.path "
                f"(such as {_short(both[0])}), so held-out accuracy would measure memory; separate them by source"
            )
        return found.pairs, held_out.pairs
    sources = list(dict.fromkeys(p.source for p in found.pairs))
    if len(sources) < 2:
        raise UserError(
            f"{config.path} holds pairs of one source only ({_short(sources[0])}), nothing can be held out; "
            "name held-out pairs with preference.eval_path, or a source column with preference.columns.source"
        )
    num = min(max(1, round(config.held_out_share * len(sources))), len(sources) - 1)
    drawn = np.random.default_rng([seed, len(sources)]).permutation(len(sources))[:num]
    aside = {sources[i] for i in drawn}
    return [p for p in found.pairs if p.source not in aside], [p for p in found.pairs if p.source in aside]


def by_seed(pairs: Sequence[PreferencePair], seed: int) -> list[PreferencePair]:
    """Return the pairs source by source, the sources in an order that the seed decides."""
    order = PairOrder([p.source for p in pairs], seed)
    return [pairs[i] for i in order.indices(0, len(pairs))]


def encode_pairs(
    config: PreferenceConfig, pairs: Sequence[PreferencePair], encoder: PairEncoder, max_length_tokens: int
) -> PairSet:
    """Return the pairs with tokens; one with a text over `max_length_tokens`, request included, is dropped and counted.

    Raises UserError for such a pair where `preference.on_too_long` is `error`. No text is ever cut.
    """
    kept: list[PreferencePair] = []
    encoded: list[EncodedPair] = []
    for pair in pairs:
        chosen, rejected = encoder.encode(pair.prompt, pair.chosen), encoder.encode(pair.prompt, pair.rejected)
        longest = max(chosen.num_tokens, rejected.num_tokens)
        if longest > max_length_tokens:
            if config.on_too_long == "error":
                raise UserError(
                    f"a preference pair of source {_short(pair.source)} has a text of {longest} tokens with its "
                    f"request, over model.max_length_tokens={max_length_tokens}; raise that, or leave such pairs out "
                    "with preference.on_too_long=drop"
                )
            continue
        kept.append(pair)
        encoded.append(_encoded(chosen, rejected, pair.margin, 1.0 / config.pairs_per_step))
    counts = {
        "pairs": len(pairs),
        "sources": len({p.source for p in kept}),
        "kept": len(kept),
        "dropped_too_long": len(pairs) - len(kept),
        "left_out": 0,
    }
    return PairSet(kept, encoded, counts)


def prepare_pairs(
    config: PreferenceConfig, seed: int, encoder: PairEncoder, max_length_tokens: int
) -> tuple[PairSet, PairSet, dict[str, int]]:
    """Read, split and encode; return the training set, the held-out set, and the counts of rows.

    Raises UserError as the steps do, and where a side is left empty or holds fewer pairs than a step takes.
    """
    found = load_pairs(config, config.path, config.split)
    aside = None if config.eval_path is None else load_pairs(config, config.eval_path, config.eval_split)
    train_pairs, held_pairs = split_pairs(config, seed, found, aside)
    train = encode_pairs(config, train_pairs, encoder, max_length_tokens)
    ordered = by_seed(held_pairs, seed)
    held_out = _limited(encode_pairs(config, ordered, encoder, max_length_tokens), config.max_eval_pairs)
    for name, side in (("training", train), ("held-out", held_out)):
        if not side.pairs:
            raise UserError(
                f"no {name} pair is left: all {side.counts['pairs']} have a text over "
                f"model.max_length_tokens={max_length_tokens}; raise it or name shorter texts"
            )
    if config.pairs_per_step > len(train.pairs):
        raise UserError(
            f"preference.pairs_per_step={config.pairs_per_step}, but there are {len(train.pairs)} training pairs "
            f"({train.counts['dropped_too_long']} dropped as too long); lower it or name more pairs"
        )
    rows = {k: v + (aside.counts[k] if aside else 0) for k, v in found.counts.items()}
    return train, held_out, rows


class PairOrder:
    """The endless order of pairs: each epoch shuffles the sources anew and keeps a source's pairs together.

    Neighbours share their request and often their chosen text, which a packed row then holds once.
    """

    def __init__(self, sources: Sequence[str], seed: int) -> None:
        """sources: of each pair, in the order that indices count."""
        if not sources:
            raise ValueError("an order needs at least one pair")
        members: dict[str, list[int]] = {}
        for index, source in enumerate(sources):
            members.setdefault(source, []).append(index)
        self._members = list(members.values())
        self._seed = seed
        self.num_pairs = len(sources)
        self._epoch: int | None = None
        self._indices: list[int] = []

    def index(self, position: int) -> int:
        """Return the pair at a position >= 0; the same for the same seed, in any call order."""
        if position < 0:
            raise ValueError(f"position={position}: counted from 0")
        epoch, offset = divmod(position, self.num_pairs)
        if epoch != self._epoch:
            drawn = np.random.default_rng([self._seed, epoch]).permutation(len(self._members))
            self._indices = [i for m in drawn for i in self._members[m]]
            self._epoch = epoch
        return self._indices[offset]

    def indices(self, start: int, stop: int) -> list[int]:
        """Return the pairs at the positions [start, stop)."""
        return [self.index(position) for position in range(start, stop)]


class _BadRowError(Exception):
    """Why a row is no preference pair."""


def _to_pair(row: Row, columns: PreferenceColumnsConfig) -> PreferencePair:
    content = row.content
    if isinstance(content, BadRow):
        raise _BadRowError(content.reason)
    prompt, chosen, rejected = (
        _text(content, role, getattr(columns, role)) for role in ("prompt", "chosen", "rejected")
    )
    if chosen.strip() == rejected.strip():
        raise _BadRowError(f"{columns.chosen} and {columns.rejected} are the same text: nothing is preferred")
    kind, source = _value(content, columns.kind), _value(content, columns.source)
    return PreferencePair(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        source=prompt if source is None else str(source),
        margin=_margin(_value(content, columns.margin), columns),
        kind=None if kind is None else str(kind),
    )


def _text(content: dict[str, Any], role: str, column: str) -> str:
    if column not in content:
        raise _BadRowError(f"no column {column!r} among {sorted(content)} (preference.columns.{role} names it)")
    text = content[column]
    if not isinstance(text, str) or not text.strip():
        raise _BadRowError(f"{column}={_short(text)}: text is needed")
    return text


def _margin(value: Any, columns: PreferenceColumnsConfig) -> float:
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise _BadRowError(f"{columns.margin}={_short(value)}: needs a number >= 0")
    return float(value)


def _value(content: dict[str, Any], column: str | None) -> Any:
    return None if column is None else content.get(column)


def _check_columns(columns: PreferenceColumnsConfig, seen: set[str], path: str) -> None:
    """Refuse a mapped column that no row has; one that keeps its default name may be absent."""
    for role, column in columns.model_dump().items():
        if seen and column is not None and column != role and column not in seen:
            raise UserError(
                f"preference.columns.{role}={column!r}: no row of {path} has it, there are {', '.join(sorted(seen))}"
            )


def _encoded(chosen: EncodedText, rejected: EncodedText, margin: float, weight: float) -> EncodedPair:
    def tokens(ids: Sequence[int]) -> np.ndarray:
        return np.asarray(ids, dtype=np.int32)

    return EncodedPair(
        tokens(chosen.head),
        tokens(chosen.body + chosen.tail),
        tokens(rejected.body + rejected.tail),
        margin,
        weight,
    )


def _limited(found: PairSet, limit: int | None) -> PairSet:
    if limit is None or limit >= len(found.pairs):
        return found
    pairs = found.pairs[:limit]
    counts = {
        **found.counts,
        "sources": len({p.source for p in pairs}),
        "kept": limit,
        "left_out": len(found.pairs) - limit,
    }
    return replace(found, pairs=pairs, encoded=found.encoded[:limit], counts=counts)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
