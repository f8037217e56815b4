// SAM's image encoder in bfloat16, in the pieces that one thread works on: some tokens, or one head's attention within
// one grid of tokens. Called from image_encoder.py, which says what is computed; the residual stream and the norms are
// float32.
//
// Matrices are row-major. Tokens follow one another by rows of the picture; those of qkv are 3 C wide: all heads'
// queries, keys and values. Attention keeps no more than 32 x 128 scores at a time, with a running maximum and sum.
//
// Source of that: Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", 2022;
// of the relative positions: Li et al., "MViTv2: Improved Multiscale Vision Transformers for Classification and
// Detection", 2022.

#include <cstdlib>
#include <memory>

#include "sam/compiled/products.h"

namespace {

using namespace samovar;

constexpr int QUERIES = 32;    // at once
constexpr int KEYS = 128;      // at once
constexpr int STRIP = 32;      // columns of a product that are finished together
constexpr float LOG2_E = 1.44269504f;
// Beyond its maximum so far a score may grow by this, in powers of two, before sums are scaled anew.
constexpr float HEADROOM = 12.0f;
constexpr float NEVER = -1e30f;

inline int round_up(int count, int multiple) { return (count + multiple - 1) / multiple * multiple; }

template <class T>
struct Aligned {
    struct Free {
        void operator()(void* memory) const { std::free(memory); }
    };
    std::unique_ptr<T, Free> memory;

    explicit Aligned(size_t count)
        : memory(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64))) {}
    operator T*() const { return memory.get(); }
};

// 2^x, to within 3e-6 relative; 0 far below.
inline __m512 power_of_two(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-125.0f));
    const __m512 r = _mm512_reduce_ps(x, 0x09);  // x - floor(x)
    __m512 p = _mm512_set1_ps(0.01353417f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.05201146f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.24144275f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.69300383f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.00000259f));
    return _mm512_scalef_ps(p, x);
}

// ---------------------------------------------------------------------------------------------------------------------
// Tokens, each by itself

// The layer norm of some tokens, as a left operand; rows up to a multiple of 32 are zero.
void norm(const float* tokens, int count, int channels, const float* weight, const float* bias, float epsilon,
          bf16* out) {
    for (int token = 0; token < count; ++token) {
        const float* from = tokens + (long)token * channels;
        bf16* to = out + (long)token * channels;
        __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
        for (int i = 0; i < channels; i += 16) sum = _mm512_add_ps(sum, _mm512_loadu_ps(from + i));
        const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / channels);
        for (int i = 0; i < channels; i += 16) {
            const __m512 centred = _mm512_sub_ps(_mm512_loadu_ps(from + i), mean);
            squares = _mm512_fmadd_ps(centred, centred, squares);
        }
        const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / channels + epsilon));
        for (int i = 0; i < channels; i += 16) {
            const __m512 normed = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(from + i), mean), factor);
            store_bf16(to + i, _mm512_fmadd_ps(normed, _mm512_loadu_ps(weight + i), _mm512_loadu_ps(bias + i)));
        }
    }
    std::memset(out + (long)count * channels, 0, sizeof(bf16) * (round_up(count, 32) - count) * channels);
}

// Products come in strips of 32 columns, for which `finish(row, column, two registers)` is called.
template <class P, class Finish>
void strips(const P& products, const bf16* left, int rows, int k, const bf16* right, int columns, float* strip,
            Finish finish) {
    for (int column = 0; column < columns; column += STRIP) {
        products.template multiply<false>(left, k, round_up(rows, 32), k, right + (long)column * k, STRIP / TILE, strip,
                                          STRIP);
        for (int row = 0; row < rows; ++row)
            finish(row, column, _mm512_load_ps(strip + row * STRIP), _mm512_load_ps(strip + row * STRIP + 16));
    }
}

template <int ISA>
void project(const float* tokens, int count, int channels, const float* norm_weight, const float* norm_bias,
             float epsilon, const bf16* weight, const float* bias, int columns, bf16* out) {
    const Products<ISA> products;
    const int rows = round_up(count, 32);
    Aligned<bf16> normed((long)rows * channels);
    Aligned<float> strip(rows * STRIP);
    norm(tokens, count, channels, norm_weight, norm_bias, epsilon, normed);
    strips(products, normed, count, channels, weight, columns, strip, [&](int row, int column, __m512 low, __m512 high) {
        bf16* to = out + (long)row * columns + column;
        store_bf16(to, _mm512_add_ps(low, _mm512_loadu_ps(bias + column)));
        store_bf16(to + 16, _mm512_add_ps(high, _mm512_loadu_ps(bias + column + 16)));
    });
}

template <int ISA>
void add_attended(const bf16* attended, int count, int channels, const bf16* weight, const float* bias, float* tokens) {
    const Products<ISA> products;
    const int rows = round_up(count, 32);
    Aligned<bf16> padded(rows == count ? 0 : (long)rows * channels);
    if (rows != count) {
        std::memcpy(padded, attended, sizeof(bf16) * count * channels);
        std::memset(padded + (long)count * channels, 0, sizeof(bf16) * (rows - count) * channels);
        attended = padded;
    }
    Aligned<float> strip(rows * STRIP);
    strips(products, attended, count, channels, weight, channels, strip,
           [&](int row, int column, __m512 low, __m512 high) {
               float* to = tokens + (long)row * channels + column;
               low = _mm512_add_ps(low, _mm512_loadu_ps(bias + column));
               high = _mm512_add_ps(high, _mm512_loadu_ps(bias + column + 16));
               _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), low));
               _mm512_storeu_ps(to + 16, _mm512_add_ps(_mm512_loadu_ps(to + 16), high));
           });
}

template <int ISA>
void add_perceptron(float* tokens, int count, int channels, const float* norm_weight, const float* norm_bias,
                    float epsilon, const bf16* first, const float* first_bias, int hidden, int slab_size,
                    const bf16* second, const float* second_bias) {
    const Products<ISA> products;
    const int rows = round_up(count, 32);
    Aligned<bf16> normed((long)rows * channels), middle((long)rows * slab_size);
    Aligned<float> strip(rows * STRIP), sums((long)rows * channels);
    norm(tokens, count, channels, norm_weight, norm_bias, epsilon, normed);
    std::memset(middle, 0, sizeof(bf16) * rows * slab_size);
    for (int start = 0; start < hidden; start += slab_size) {
        strips(products, normed, count, channels, first + (long)start * channels, slab_size, strip,
               [&](int row, int column, __m512 low, __m512 high) {
                   bf16* to = middle + (long)row * slab_size + column;
                   const float* add = first_bias + start + column;
                   store_bf16(to, gelu(_mm512_add_ps(low, _mm512_loadu_ps(add))));
                   store_bf16(to + 16, gelu(_mm512_add_ps(high, _mm512_loadu_ps(add + 16))));
               });
        // The second weight is packed in slabs of hidden channels.
        const bf16* slab = second + (long)start * channels;
        if (start == 0)
            products.template multiply<false>(middle, slab_size, rows, slab_size, slab, channels / TILE, sums, channels);
        else
            products.template multiply<true>(middle, slab_size, rows, slab_size, slab, channels / TILE, sums, channels);
    }
    for (int token = 0; token < count; ++token)
        for (int i = 0; i < channels; i += 16) {
            float* to = tokens + (long)token * channels + i;
            const __m512 found = _mm512_add_ps(_mm512_load_ps(sums + (long)token * channels + i),
                                               _mm512_loadu_ps(second_bias + i));
            _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), found));
        }
}

// ---------------------------------------------------------------------------------------------------------------------
// Attention of one head within a grid of tokens

struct Grid {
    const bf16* qkv;         // of the whole picture
    const bf16* outside;     // of a token beyond it: what the layer makes of zeros
    int picture_rows, picture_columns;
    int top, left, rows, columns;  // within the picture, which it may exceed
    int channels, heads;

    int width() const { return round_up(columns, TILE); }  // keys in a row, with those that never count
    int keys() const { return round_up(rows * width(), 32); }
    int size() const { return channels / heads; }
    int padded_size() const { return round_up(size(), DEPTH); }

    // One head's part of a token's query (0), key (1) or value (2); null where there is none.
    const bf16* at(int part, int head, int row, int column) const {
        if (row >= rows || column >= columns) return nullptr;
        const int y = top + row, x = left + column;
        const bf16* token = y < picture_rows && x < picture_columns
                                ? qkv + ((long)y * picture_columns + x) * 3 * channels
                                : outside;
        return token + part * channels + head * size();
    }
};

// Up to 32 numbers; zeros beyond `count` and for what there is not.
inline __m512i load_some(const bf16* from, int count) {
    if (!from || count <= 0) return _mm512_setzero_si512();
    return _mm512_maskz_loadu_epi16(count >= 32 ? ~0u : (1u << count) - 1, from);
}

// Packs all keys as a right operand with k = channel.
void pack_keys(const Grid& grid, int head, bf16* packed) {
    const int steps = grid.padded_size() / DEPTH, width = grid.width();
    for (int tile = 0; tile < grid.keys() / TILE; ++tile)
        for (int step = 0; step < steps; ++step) {
            __m512i part[16];
            for (int n = 0; n < TILE; ++n) {
                const int key = tile * TILE + n;
                const bf16* from = grid.at(1, head, key / width, key % width);
                part[n] = load_some(from ? from + step * DEPTH : nullptr, grid.size() - step * DEPTH);
            }
            transpose_16x16(part);
            bf16* to = packed + (tile * steps + step) * TILE_SIZE;
            for (int pair = 0; pair < 16; ++pair) _mm512_storeu_si512(to + pair * 32, part[pair]);
        }
}

// Packs all values as right operands with k = key, one for each `KEYS` keys. Channels are a multiple of 16.
void pack_values(const Grid& grid, int head, bf16* packed) {
    const int width = grid.width(), keys = grid.keys(), size = grid.size();
    alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                   8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i interleave = _mm512_load_si512(order);
    for (int first = 0; first < keys; first += KEYS) {
        const int steps = std::min(KEYS, keys - first) / DEPTH;
        for (int pair = 0; pair < steps * 16; ++pair) {
            const int key = first + 2 * pair;
            const bf16* even = grid.at(2, head, key / width, key % width);
            const bf16* odd = grid.at(2, head, (key + 1) / width, (key + 1) % width);
            bf16* to = packed + (pair / 16) * TILE_SIZE + (pair % 16) * 32;
            for (int column = 0; column < size; column += TILE) {
                const __m256i a = even ? _mm256_loadu_si256((const __m256i*)(even + column)) : _mm256_setzero_si256();
                const __m256i b = odd ? _mm256_loadu_si256((const __m256i*)(odd + column)) : _mm256_setzero_si256();
                const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
                _mm512_storeu_si512(to + (column / TILE) * steps * TILE_SIZE, _mm512_permutexvar_epi16(interleave, both));
            }
        }
        packed += (long)steps * DEPTH * size;
    }
}

// What 32 queries know of each row and column of keys, in powers of two.
struct Bias {
    const int rows, width;
    Aligned<float> by_row, by_column;  // query x row, query x column

    explicit Bias(const Grid& grid)
        : rows(grid.keys() / grid.width() + 1), width(grid.width()), by_row(QUERIES * rows), by_column(QUERIES * width) {}

    // Of a query's products with the tables, what belongs to row 0 and to column 0 of the keys comes first.
    void take(int query, const Grid& grid, const float* from_row, const float* from_column) {
        float* rows_of = by_row + query * rows;
        for (int y = 0; y < grid.rows; ++y) rows_of[y] = LOG2_E * from_row[y];
        for (int y = grid.rows; y < rows; ++y) rows_of[y] = NEVER;
        float* columns_of = by_column + query * width;
        for (int x = 0; x < grid.columns; ++x) columns_of[x] = LOG2_E * from_column[x];
        for (int x = grid.columns; x < width; ++x) columns_of[x] = NEVER;
    }
};

// A running softmax over keys and the sums of values under it, for 32 queries.
struct Attention {
    const int size;
    alignas(64) float scores[QUERIES * KEYS];
    alignas(64) bf16 weights[QUERIES * KEYS];
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
        __m512 high = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
        int row = first / bias.width, column = first % bias.width;
        for (int i = 0; i < N; ++i) {
            const __m512 place = _mm512_add_ps(_mm512_loadu_ps(columns + column), _mm512_set1_ps(rows[row]));
            moved[i] = _mm512_fmadd_ps(_mm512_load_ps(score + 16 * i), factor, place);
            high = _mm512_max_ps(high, moved[i]);
            column += 16;
            if (column == bias.width) column = 0, ++row;
        }
        if (_mm512_cmp_ps_mask(high, _mm512_set1_ps(highest[query] + HEADROOM), _CMP_GT_OQ)) raise(query, high);
        const __m512 base = _mm512_set1_ps(highest[query]);
        __m512 share = _mm512_load_ps(shares + query * 16);
        bf16* to = weights + query * 16 * N;
        for (int i = 0; i < N; i += 2) {
            const __m512 one = power_of_two(_mm512_sub_ps(moved[i], base));
            const __m512 two = power_of_two(_mm512_sub_ps(moved[i + 1], base));
            share = _mm512_add_ps(share, _mm512_add_ps(one, two));
            _mm512_store_si512(to + 16 * i, (__m512i)_mm512_cvtne2ps_pbh(two, one));
        }
        _mm512_store_ps(shares + query * 16, share);
    }

    void raise(int query, __m512 high) {
        const float after = _mm512_reduce_max_ps(high);
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

    void write(int query, bf16* to) const {
        const __m512 factor = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(_mm512_load_ps(shares + query * 16)));
        for (int i = 0; i < size; i += 16)
            store_bf16(to + i, _mm512_mul_ps(_mm512_load_ps(sums + query * size + i), factor));
    }
};

// A query's product with column j of the table is its bias for what is j - centre rows, or columns, behind it.
struct Table {
    const bf16* packed;  // padded size x distances
    int distances;       // a multiple of 16
    int centre;
};

// Attends for the queries that lie in the picture.
template <int ISA>
void attend(const Grid& grid, int head, const Table& row_table, const Table& column_table, float scale, bf16* out) {
    const Products<ISA> products;
    const int size = grid.size(), padded = grid.padded_size(), keys = grid.keys();
    Aligned<bf16> key(keys * padded), value(keys * size), query(QUERIES * padded);
    Aligned<float> by_row(QUERIES * row_table.distances), by_column(QUERIES * column_table.distances);
    auto attention = std::make_unique<Attention>(size);
    Bias bias(grid);
    pack_keys(grid, head, key);
    pack_values(grid, head, value);

    const int columns = std::min(grid.columns, grid.picture_columns - grid.left);
    const int end = std::min(grid.rows, grid.picture_rows - grid.top) * columns;
    for (int first = 0; first < end; first += QUERIES) {
        const int count = std::min(QUERIES, end - first);
        for (int i = 0; i < QUERIES; ++i)
            for (int channel = 0; channel < padded; channel += 32) {
                const int place = std::min(first + i, end - 1);
                const bf16* from = grid.at(0, head, place / columns, place % columns);
                _mm512_store_si512(query + i * padded + channel, load_some(from + channel, size - channel));
            }
        products.template multiply<false>(query, padded, QUERIES, padded, row_table.packed, row_table.distances / TILE,
                                          by_row, row_table.distances);
        products.template multiply<false>(query, padded, QUERIES, padded, column_table.packed,
                                          column_table.distances / TILE, by_column, column_table.distances);
        for (int i = 0; i < QUERIES; ++i) {
            const int place = std::min(first + i, end - 1);
            bias.take(i, grid, by_row + i * row_table.distances + row_table.centre - place / columns,
                      by_column + i * column_table.distances + column_table.centre - place % columns);
        }
        attention->begin();
        const bf16* values = value;
        for (int start = 0; start < keys; start += KEYS) {
            const int some = std::min(KEYS, keys - start);
            products.template multiply<false>(query, padded, QUERIES, padded, key + start * padded, some / TILE,
                                              attention->scores, some);
            attention->weigh_all(some, start, bias, scale * LOG2_E);
            products.template multiply<true>(attention->weights, some, QUERIES, some, values, size / TILE,
                                             attention->sums, size);
            values += some * size;
        }
        for (int i = 0; i < count; ++i) {
            const int y = grid.top + (first + i) / columns, x = grid.left + (first + i) % columns;
            attention->write(i, out + ((long)y * grid.picture_columns + x) * grid.channels + head * size);
        }
    }
}

}  // namespace

extern "C" {

// A layer norm and a linear layer of some tokens: count x channels float32 to count x columns bfloat16.
void samovar_project(int isa, const float* tokens, int count, int channels, const float* norm_weight,
                     const float* norm_bias, float epsilon, const uint16_t* weight, const float* bias, int columns,
                     uint16_t* out) {
    (isa == AMX ? project<AMX> : project<AVX512>)(tokens, count, channels, norm_weight, norm_bias, epsilon, weight,
                                                  bias, columns, out);
}

// Adds to some tokens what a linear layer makes of what they attended to, count x channels bfloat16.
void samovar_add_attended(int isa, const uint16_t* attended, int count, int channels, const uint16_t* weight,
                          const float* bias, float* tokens) {
    (isa == AMX ? add_attended<AMX> : add_attended<AVX512>)(attended, count, channels, weight, bias, tokens);
}

// Adds to some tokens what a layer norm and a perceptron with one hidden layer and GELU make of them. Of the hidden
// channels `slab_size` are computed at once, a multiple of 32 that divides them; the second weight is packed for each.
void samovar_add_perceptron(int isa, float* tokens, int count, int channels, const float* norm_weight,
                            const float* norm_bias, float epsilon, const uint16_t* first, const float* first_bias,
                            int hidden, int slab_size, const uint16_t* second, const float* second_bias) {
    (isa == AMX ? add_perceptron<AMX> : add_perceptron<AVX512>)(tokens, count, channels, norm_weight, norm_bias,
                                                                epsilon, first, first_bias, hidden, slab_size,
                                                                second, second_bias);
}

// The attention of some heads within the grid of `rows` x `columns` tokens at (top, left) of a picture. A table is packed:
// channels (padded to a multiple of 32) x distances (padded to one of 16), column j being j - centre behind the query.
void samovar_attend(int isa, const uint16_t* qkv, const uint16_t* outside, int picture_rows, int picture_columns,
                    int top, int left, int rows, int columns, int channels, int heads, int first_head, int end_head,
                    const uint16_t* row_table, int row_distances, int row_centre, const uint16_t* column_table,
                    int column_distances, int column_centre, float scale, uint16_t* out) {
    const Grid grid = {qkv, outside, picture_rows, picture_columns, top, left, rows, columns, channels, heads};
    const Table by_row = {row_table, row_distances, row_centre};
    const Table by_column = {column_table, column_distances, column_centre};
    for (int head = first_head; head < end_head; ++head)
        (isa == AMX ? attend<AMX> : attend<AVX512>)(grid, head, by_row, by_column, scale, out);
}
}
