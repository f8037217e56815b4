// The attention of SAM's image encoder: of one head within one grid of tokens, a window or the whole picture. Called from
// Python, which says what is computed.
//
// Tokens follow one another by rows of the picture; those of qkv are 3 C wide: all heads' queries, keys and values. No more
// than 32 x 128 scores are kept at a time, with a running maximum and sum, and what they come to is a left operand.
//
// Source of that: Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", 2022;
// of the relative positions: Li et al., "MViTv2: Improved Multiscale Vision Transformers for Classification and
// Detection", 2022.

#include "encoder_service/fused/memory.h"
#include "encoder_service/fused/operands.h"

namespace {

using namespace samovar;

constexpr int QUERIES = PANEL;  // at once
constexpr int KEYS = 128;       // at once
constexpr float LOG2_E = 1.44269504f;
// What a block of keys may weigh, the highest of the first block weighing 1, before sums are scaled anew: far from what
// float32 cannot hold.
constexpr float HEAVIEST = 0x1p40f;
constexpr float NEVER = -1e30f;

// Takes numbers too small to be normal for zero, for as long as it lives: they are slow, and weigh nothing.
struct NoDenormals {
    const unsigned before = _mm_getcsr();
    NoDenormals() { _mm_setcsr(before | 0x8040); }
    ~NoDenormals() { _mm_setcsr(before); }
};

template <class Number>
struct Grid {
    const Number* qkv;         // of the whole picture
    const Number* outside;     // of a token beyond it: what the layer makes of zeros
    int picture_rows, picture_columns;
    int top, left, rows, columns;  // within the picture, which it may exceed
    int channels, heads;

    int width() const { return round_up(columns, TILE); }  // keys in a row, with those that never count
    int keys() const { return round_up(rows * width(), 32); }
    int size() const { return channels / heads; }

    // One head's part of a token's query (0), key (1) or value (2); null where there is none.
    const Number* at(int part, int head, int row, int column) const {
        if (row >= rows || column >= columns) return nullptr;
        const int y = top + row, x = left + column;
        const Number* token = y < picture_rows && x < picture_columns
                                ? qkv + ((long)y * picture_columns + x) * 3 * channels
                                : outside;
        return token + part * channels + head * size();
    }
};

// Packs all keys as a right operand with k = channel.
template <class Format, class Number>
void pack_keys(const Grid<Number>& grid, int head, Number* packed) {
    constexpr int DEEP = Format::COLUMN_DEPTH;
    const int padded = round_up(grid.size(), Format::MULTIPLE), width = grid.width();
    for (int tile = 0; tile < grid.keys() / TILE; ++tile)
        for (int channel = 0; channel < padded; channel += DEEP) {
            const Number* part[TILE];
            for (int n = 0; n < TILE; ++n) {
                const int key = tile * TILE + n;
                const Number* from = grid.at(1, head, key / width, key % width);
                part[n] = from ? from + channel : nullptr;
            }
            Format::pack_columns(part, grid.size() - channel, packed + (tile * padded + channel) * TILE);
        }
}

// Packs all values as right operands with k = key, one for each `KEYS` keys. Channels are a multiple of 16.
template <class Format, class Number>
void pack_values(const Grid<Number>& grid, int head, Number* packed) {
    const int width = grid.width(), keys = grid.keys(), size = grid.size();
    for (int first = 0; first < keys; first += KEYS) {
        const int some = std::min(KEYS, keys - first);
        for (int pair = 0; pair < some / 2; ++pair) {
            const int key = first + 2 * pair;
            const Number* even = grid.at(2, head, key / width, key % width);
            const Number* odd = grid.at(2, head, (key + 1) / width, (key + 1) % width);
            for (int column = 0; column < size; column += TILE)
                Format::pack_rows(even ? even + column : nullptr, odd ? odd + column : nullptr, pair,
                                  packed + column * some);
        }
        packed += (long)some * size;
    }
}

// What 32 queries know of each row and column of keys, in powers of two.
struct Bias {
    const int rows, width;
    Aligned<float> by_row, by_column;  // query x row, query x column

    template <class Number>
    explicit Bias(const Grid<Number>& grid)
        : rows(grid.keys() / grid.width() + 1), width(grid.width()), by_row(QUERIES * rows), by_column(QUERIES * width) {}

    // Of a query's products with the tables, what belongs to row 0 and to column 0 of the keys comes first.
    template <class Number>
    void take(int query, const Grid<Number>& grid, const float* from_row, const float* from_column) {
        float* rows_of = by_row + query * rows;
        for (int y = 0; y < grid.rows; ++y) rows_of[y] = LOG2_E * from_row[y];
        for (int y = grid.rows; y < rows; ++y) rows_of[y] = NEVER;
        float* columns_of = by_column + query * width;
        for (int x = 0; x < grid.columns; ++x) columns_of[x] = LOG2_E * from_column[x];
        for (int x = grid.columns; x < width; ++x) columns_of[x] = NEVER;
    }
};

// A running softmax over keys and the sums of values under it, for 32 queries.
template <class Format>
struct Attention {
    using Number = typename Format::Number;

    const int size;
    alignas(64) float scores[QUERIES * KEYS];
    alignas(64) Number weights[QUERIES * KEYS];
    alignas(64) float shares[QUERIES * 16];
    alignas(64) float highest[QUERIES];
    alignas(64) float sums[QUERIES * 128];

    explicit Attention(int size) : size(size) {}

    void begin() {
        std::fill(shares, shares + QUERIES * 16, 0.0f);
        std::fill(highest, highest + QUERIES, -std::numeric_limits<float>::infinity());
        std::fill(sums, sums + QUERIES * size, 0.0f);
    }

    // Takes `16 N` scores of one query, which begin at key `first`.
    template <int N>
    void weigh(int query, int first, const Bias& bias, float scale) {
        const float* score = scores + query * 16 * N;
        const float *rows = bias.by_row + query * bias.rows, *columns = bias.by_column + query * bias.width;
        const __m512 factor = _mm512_set1_ps(scale);
        __m512 moved[N];
        int row = first / bias.width, column = first % bias.width;
        for (int i = 0; i < N; ++i) {
            const __m512 place = _mm512_add_ps(_mm512_loadu_ps(columns + column), _mm512_set1_ps(rows[row]));
            moved[i] = _mm512_fmadd_ps(_mm512_load_ps(score + 16 * i), factor, place);
            column += 16;
            if (column == bias.width) column = 0, ++row;
        }
        if (first == 0) raise(query, highest_of<N>(moved));
        __m512 share = weigh_from<N>(query, moved);
        if (_mm512_cmp_ps_mask(share, _mm512_set1_ps(HEAVIEST), _CMP_GT_OQ)) {
            raise(query, highest_of<N>(moved));
            share = weigh_from<N>(query, moved);
        }
        _mm512_store_ps(shares + query * 16, _mm512_add_ps(_mm512_load_ps(shares + query * 16), share));
    }

    template <int N>
    __m512 weigh_from(int query, const __m512 (&moved)[N]) {
        const __m512 base = _mm512_set1_ps(highest[query]);
        __m512 share = _mm512_setzero_ps();
        for (int i = 0; i < N; i += 2) {
            const __m512 one = Format::power_of_two(_mm512_sub_ps(moved[i], base));
            const __m512 two = Format::power_of_two(_mm512_sub_ps(moved[i + 1], base));
            share = _mm512_add_ps(share, _mm512_add_ps(one, two));
            Format::put(panel_place(weights, 16 * N, query, 16 * i), one, two);
        }
        return share;
    }

    template <int N>
    static float highest_of(const __m512 (&moved)[N]) {
        __m512 high = moved[0];
        for (int i = 1; i < N; ++i) high = _mm512_max_ps(high, moved[i]);
        return _mm512_reduce_max_ps(high);
    }

    void raise(int query, float after) {
        const float fall = std::exp2(highest[query] - after);  // 0 where nothing was seen yet
        highest[query] = after;
        const __m512 factor = _mm512_set1_ps(fall);
        _mm512_store_ps(shares + query * 16, _mm512_mul_ps(_mm512_load_ps(shares + query * 16), factor));
        for (int i = 0; i < size; i += 16)
            _mm512_store_ps(sums + query * size + i, _mm512_mul_ps(_mm512_load_ps(sums + query * size + i), factor));
    }

    void weigh_all(int keys, int first, const Bias& bias, float scale) {
        for (int query = 0; query < QUERIES; ++query) switch (keys / 16) {
                case 2: weigh<2>(query, first, bias, scale); break;
                case 4: weigh<4>(query, first, bias, scale); break;
                case 6: weigh<6>(query, first, bias, scale); break;
                default: weigh<8>(query, first, bias, scale);
            }
    }

    void write(int query, Number* out, int channels, int token, int channel) const {
        const __m512 factor = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(_mm512_load_ps(shares + query * 16)));
        for (int i = 0; i < size; i += 16)
            Format::put(panel_place(out, channels, token, channel + i),
                       _mm512_mul_ps(_mm512_load_ps(sums + query * size + i), factor));
    }
};

// A query's product with column j of the table is its bias for what is j - centre rows, or columns, behind it.
template <class Number>
struct Table {
    const Number* packed;  // padded size x distances
    int distances;       // a multiple of 16
    int centre;
};

// Attends for the queries that lie in the picture.
template <class Format, class Number>
void attend(const Grid<Number>& grid, int head, const Table<Number>& row_table, const Table<Number>& column_table,
            float scale, Number* out) {
    const NoDenormals guard;
    const typename Format::Products products;
    const int size = grid.size(), padded = round_up(size, Format::MULTIPLE), keys = grid.keys();
    Aligned<Number> key(keys * padded), value(keys * size), query(QUERIES * padded);
    Aligned<float> by_row(QUERIES * row_table.distances), by_column(QUERIES * column_table.distances);
    auto attention = std::make_unique<Attention<Format>>(size);
    Bias bias(grid);
    pack_keys<Format>(grid, head, static_cast<Number*>(key));
    pack_values<Format>(grid, head, static_cast<Number*>(value));
    std::fill(query + 0, query + QUERIES * padded, Number(0));

    const int columns = std::min(grid.columns, grid.picture_columns - grid.left);
    const int end = std::min(grid.rows, grid.picture_rows - grid.top) * columns;
    for (int first = 0; first < end; first += QUERIES) {
        const int count = std::min(QUERIES, end - first);
        for (int i = 0; i < QUERIES; ++i)
            for (int channel = 0; channel < size; channel += TILE) {
                const int place = std::min(first + i, end - 1);
                std::memcpy(panel_place<Number>(query, padded, i, channel),
                            grid.at(0, head, place / columns, place % columns) + channel, TILE * sizeof(Number));
            }
        products.template multiply<false>(query + 0, PANEL, padded, row_table.packed, row_table.distances / TILE, by_row,
                                          row_table.distances);
        products.template multiply<false>(query + 0, PANEL, padded, column_table.packed, column_table.distances / TILE,
                                          by_column, column_table.distances);
        for (int i = 0; i < QUERIES; ++i) {
            const int place = std::min(first + i, end - 1);
            bias.take(i, grid, by_row + i * row_table.distances + row_table.centre - place / columns,
                      by_column + i * column_table.distances + column_table.centre - place % columns);
        }
        attention->begin();
        for (int start = 0; start < keys; start += KEYS) {
            const int some = std::min(KEYS, keys - start);
            products.template multiply<false>(query + 0, PANEL, padded, key + start * padded, some / TILE, attention->scores,
                                              some);
            attention->weigh_all(some, start, bias, scale * LOG2_E);
            products.template multiply<true>(attention->weights, PANEL, some, value + start * size, size / TILE,
                                             attention->sums, size);
        }
        for (int i = 0; i < count; ++i) {
            const int y = grid.top + (first + i) / columns, x = grid.left + (first + i) % columns;
            attention->write(i, out, grid.channels, y * grid.picture_columns + x, head * size);
        }
    }
}

}  // namespace

extern "C" {

// The attention of some heads within the grid of `rows` x `columns` tokens at (top, left) of a picture, in bfloat16. A table
// is packed: channels (padded to a multiple of 32) x distances (padded to one of 16), column j being j - centre behind the
// query. What comes out is in panels.
void samovar_attend(int isa, const uint16_t* qkv, const uint16_t* outside, int picture_rows, int picture_columns,
                    int top, int left, int rows, int columns, int channels, int heads, int first_head, int end_head,
                    const uint16_t* row_table, int row_distances, int row_centre, const uint16_t* column_table,
                    int column_distances, int column_centre, float scale, uint16_t* out) {
    const Grid<bf16> grid = {qkv, outside, picture_rows, picture_columns, top, left, rows, columns, channels, heads};
    const Table<bf16> by_row = {row_table, row_distances, row_centre};
    const Table<bf16> by_column = {column_table, column_distances, column_centre};
    for (int head = first_head; head < end_head; ++head)
        (isa == AMX ? attend<Half<AMX>, bf16> : attend<Half<AVX512>, bf16>)(grid, head, by_row, by_column, scale, out);
}

// The same in float32. Tables are not padded in channels.
void samovar_attend_exactly(const float* qkv, const float* outside, int picture_rows, int picture_columns, int top,
                            int left, int rows, int columns, int channels, int heads, int first_head, int end_head,
                            const float* row_table, int row_distances, int row_centre, const float* column_table,
                            int column_distances, int column_centre, float scale, float* out) {
    const Grid<float> grid = {qkv, outside, picture_rows, picture_columns, top, left, rows, columns, channels, heads};
    const Table<float> by_row = {row_table, row_distances, row_centre};
    const Table<float> by_column = {column_table, column_distances, column_centre};
    for (int head = first_head; head < end_head; ++head)
        attend<Single, float>(grid, head, by_row, by_column, scale, out);
}
}
