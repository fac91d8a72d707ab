"""A penalty for samples that come close to the token limit: a reward of 0 and below."""


def overlong_penalty(num_tokens: int, max_tokens: int, buffer_tokens: int) -> float:
    """Return DAPO's soft overlong punishment, in [-1, 0] (arXiv 2503.14476 eq. 13).

    With L = max_tokens - buffer_tokens:  0 up to L tokens,  (L - num_tokens) / buffer_tokens up to max_tokens,
    -1 above. A buffer of 0 means no punishment; one above the limit begins at 0 tokens.
    """
    if num_tokens < 0 or buffer_tokens < 0 or max_tokens <= 0:
        raise ValueError(f"overlong penalty of {num_tokens} tokens, limit {max_tokens}, buffer {buffer_tokens}")
    buffer = min(buffer_tokens, max_tokens)
    if buffer == 0:
        return 0.0
    over = num_tokens - (max_tokens - buffer)
    return -min(over / buffer, 1.0) if over > 0 else 0.0
