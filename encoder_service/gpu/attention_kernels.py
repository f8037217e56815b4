"""Attention with decomposed relative positions, in Triton: scores stay in registers and are never written.

Queries, keys and values are read where the qkv layer left them, a row of `3 x heads x channels of a head` for each
token; the tokens of a picture follow one another by rows of its square grid, the pictures one another. Windows are
found by arithmetic, so nothing is partitioned, and what is written comes in the order of the tokens.

Numbers come prepared, see `weights.py`: queries carry the scale and log2(e), so that a score with its bias goes
straight into exp2; the tables of relative positions carry the inverse of the scale, since they meet such queries.

A head of 80 channels is computed as 64 + 16 and not padded to 128: the sides of a product are powers of two. `MAIN` and
`REST` are the two; without a rest its branches are not compiled.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def relative_positions_kernel(
    qkv,
    tables,
    bias,
    channels,
    SIDE: tl.constexpr,
    WINDOW: tl.constexpr,
    WINDOWED: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    LINE: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Write the bias of each query for each row of keys and for each column of keys.

    A program does a line of the grid for one head of one picture: of the first `SIDE` each a row of tokens, whose place
    within their windows' rows is the same, of the others a column. What is beyond the window's keys, up to `KEYS`,
    becomes zero.

    `tables`: 2 x (2 WINDOW - 1) x channels of a head, for the distances of rows and those of columns.
    `bias`, for each head of each picture: if `WINDOWED`, tokens x 2 KEYS, by rows and then by columns; otherwise
    KEYS x tokens by rows and then tokens x KEYS by columns, as the attention of each kind reads them.
    """
    line, head = tl.program_id(0), tl.program_id(1)
    picture, heads = tl.program_id(2), tl.num_programs(1)
    tokens: tl.constexpr = SIDE * SIDE
    width: tl.constexpr = MAIN + REST
    down = line >= SIDE
    line -= tl.where(down, SIDE, 0)
    along = tl.arange(0, LINE)
    token = tl.where(down, line + along * SIDE, line * SIDE + along)
    real = (along < SIDE)[:, None]
    key = tl.arange(0, KEYS)
    known = (key < WINDOW)[None, :]
    queries = qkv + (picture * tokens + token)[:, None] * (3 * channels) + head * width
    distance = line % WINDOW + WINDOW - 1 - key + tl.where(down, 2 * WINDOW - 1, 0)
    entries = tables + distance[None, :] * width
    main = tl.arange(0, MAIN)
    query = tl.load(queries + main[None, :], mask=real, other=0.0)
    found = tl.dot(query, tl.load(entries + main[:, None], mask=known, other=0.0))
    if REST > 0:
        rest = MAIN + tl.arange(0, REST)
        query = tl.load(queries + rest[None, :], mask=real, other=0.0)
        found = tl.dot(query, tl.load(entries + rest[:, None], mask=known, other=0.0), acc=found)
    found = found.to(bias.dtype.element_ty)
    bias += (picture * heads + head) * (tokens * 2 * KEYS)
    if WINDOWED:
        bias += tl.where(down, KEYS, 0)
        tl.store(bias + token[:, None] * (2 * KEYS) + key[None, :], found, mask=real)
    elif down:
        tl.store(bias + tokens * KEYS + token[:, None] * KEYS + key[None, :], found, mask=real)
    else:
        tl.store(bias + key[None, :] * tokens + token[:, None], found, mask=real)


@triton.jit
def global_attention_kernel(
    qkv,
    bias,
    attended,
    channels,
    SIDE: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    KEYS: tl.constexpr,
    QUERIES: tl.constexpr,
):
    """Attend over whole pictures: `QUERIES` queries of one head of one picture meet the keys row by row of the grid.

    A row of keys has one bias for its row, a number for each query, and one for its columns, which is the same for all
    rows and stays in registers. `KEYS` is the side of the grid, or the next power of two.
    """
    head, picture, heads = tl.program_id(1), tl.program_id(2), tl.num_programs(1)
    tokens: tl.constexpr = SIDE * SIDE
    width: tl.constexpr = MAIN + REST
    query_token = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    real = (query_token < tokens)[:, None]
    column = tl.arange(0, KEYS)
    known = column < SIDE
    main = tl.arange(0, MAIN)
    rest = MAIN + tl.arange(0, REST if REST > 0 else 1)
    qkv += picture * tokens * (3 * channels) + head * width
    queries = qkv + query_token[:, None] * (3 * channels)
    query = tl.load(queries + main[None, :], mask=real, other=0.0)
    bias += (picture * heads + head) * (tokens * 2 * KEYS)
    by_column = tl.load(bias + tokens * KEYS + query_token[:, None] * KEYS + column[None, :], mask=real, other=0.0)
    by_column = tl.where(known[None, :], by_column.to(tl.float32), float("-inf"))
    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    out = tl.zeros([QUERIES, MAIN], tl.float32)
    if REST > 0:
        query_rest = tl.load(queries + rest[None, :], mask=real, other=0.0)
        out_rest = tl.zeros([QUERIES, REST], tl.float32)
    for row in range(SIDE):
        by_row = tl.load(bias + row * tokens + query_token, mask=query_token < tokens, other=0.0)
        keys = qkv + channels + (row * SIDE + column) * (3 * channels)
        key = tl.load(keys[None, :] + main[:, None], mask=known[None, :], other=0.0)
        scores = tl.dot(query, key, acc=by_column + by_row.to(tl.float32)[:, None])
        if REST > 0:
            key = tl.load(keys[None, :] + rest[:, None], mask=known[None, :], other=0.0)
            scores = tl.dot(query_rest, key, acc=scores)
        before = highest
        highest = tl.maximum(before, tl.max(scores, 1))
        shares = tl.exp2(scores - highest[:, None])
        shrink = tl.exp2(before - highest)
        total = total * shrink + tl.sum(shares, 1)
        shares = shares.to(qkv.dtype.element_ty)
        values = keys + channels
        value = tl.load(values[:, None] + main[None, :], mask=known[:, None], other=0.0)
        out = tl.dot(shares, value, acc=out * shrink[:, None])
        if REST > 0:
            value = tl.load(values[:, None] + rest[None, :], mask=known[:, None], other=0.0)
            out_rest = tl.dot(shares, value, acc=out_rest * shrink[:, None])
    attended += (picture * tokens + query_token)[:, None] * channels + head * width
    tl.store(attended + main[None, :], (out / total[:, None]).to(attended.dtype.element_ty), mask=real)
    if REST > 0:
        tl.store(attended + rest[None, :], (out_rest / total[:, None]).to(attended.dtype.element_ty), mask=real)


# The layer's row changes from call to call; a kernel for rows that 16 divides would be one more to compile.
@triton.jit(do_not_specialize=["outside"])
def window_attention_kernel(
    qkv,
    bias,
    attended,
    channels,
    outside,
    SIDE: tl.constexpr,
    WINDOW: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    SLOTS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Attend within windows: `QUERIES` queries of one window, head and picture meet its keys, `KEYS` at a time.

    Queries are the window's tokens that lie in the picture; programs that find none left end at once. Keys are all of
    its tokens. Those beyond the picture are zero before the qkv layer, so that their keys and values are the layer's
    bias, which stands in row `outside` of `qkv`.

    The biases of a query, `SLOTS` for rows and `SLOTS` for columns of its window, are spread over the keys by a product
    with ones and zeros, which is exact.
    """
    head, picture, heads = tl.program_id(1), tl.program_id(2), tl.num_programs(1)
    tokens: tl.constexpr = SIDE * SIDE
    width: tl.constexpr = MAIN + REST
    across: tl.constexpr = (SIDE + WINDOW - 1) // WINDOW
    pieces: tl.constexpr = (WINDOW * WINDOW + QUERIES - 1) // QUERIES
    window = tl.program_id(0) // pieces
    top, left = window // across * WINDOW, window % across * WINDOW
    rows, columns = tl.minimum(SIDE - top, WINDOW), tl.minimum(SIDE - left, WINDOW)
    first = tl.program_id(0) % pieces * QUERIES
    if first >= rows * columns:
        return
    place = first + tl.arange(0, QUERIES)
    real = (place < rows * columns)[:, None]
    token = (top + place // columns) * SIDE + left + place % columns
    main = tl.arange(0, MAIN)
    rest = MAIN + tl.arange(0, REST if REST > 0 else 1)
    element = qkv.dtype.element_ty
    qkv += head * width
    queries = qkv + (picture * tokens + token)[:, None] * (3 * channels)
    query = tl.load(queries + main[None, :], mask=real, other=0.0)
    slot = tl.arange(0, 2 * SLOTS)
    bias += (picture * heads + head) * (tokens * 2 * SLOTS)
    biases = tl.load(bias + token[:, None] * (2 * SLOTS) + slot[None, :], mask=real, other=0.0)
    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    out = tl.zeros([QUERIES, MAIN], tl.float32)
    if REST > 0:
        query_rest = tl.load(queries + rest[None, :], mask=real, other=0.0)
        out_rest = tl.zeros([QUERIES, REST], tl.float32)
    for start in range(0, WINDOW * WINDOW, KEYS):
        key_place = start + tl.arange(0, KEYS)
        key_row, key_column = key_place // WINDOW, key_place % WINDOW
        inside = (key_row < rows) & (key_column < columns)
        key_token = picture * tokens + (top + key_row) * SIDE + left + key_column
        keys = qkv + channels + tl.where(inside, key_token, outside) * (3 * channels)
        own_slot = (slot[:, None] == key_row[None, :]) | (slot[:, None] == key_column[None, :] + SLOTS)
        scores = tl.dot(biases, own_slot.to(element))
        scores = tl.dot(query, tl.load(keys[None, :] + main[:, None]), acc=scores)
        if REST > 0:
            scores = tl.dot(query_rest, tl.load(keys[None, :] + rest[:, None]), acc=scores)
        scores = tl.where((key_place < WINDOW * WINDOW)[None, :], scores, float("-inf"))
        before = highest
        highest = tl.maximum(before, tl.max(scores, 1))
        shares = tl.exp2(scores - highest[:, None])
        shrink = tl.exp2(before - highest)
        total = total * shrink + tl.sum(shares, 1)
        shares = shares.to(element)
        values = keys + channels
        out = tl.dot(shares, tl.load(values[:, None] + main[None, :]), acc=out * shrink[:, None])
        if REST > 0:
            value = tl.load(values[:, None] + rest[None, :])
            out_rest = tl.dot(shares, value, acc=out_rest * shrink[:, None])
    attended += (picture * tokens + token)[:, None] * channels + head * width
    tl.store(attended + main[None, :], (out / total[:, None]).to(attended.dtype.element_ty), mask=real)
    if REST > 0:
        tl.store(attended + rest[None, :], (out_rest / total[:, None]).to(attended.dtype.element_ty), mask=real)
