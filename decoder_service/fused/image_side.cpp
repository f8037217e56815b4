// The image's side of SAM's mask decoder in bfloat16, fused so that what belongs to a block of positions stays in the
// cache until it is done with. Called from mask_decoder.py, which says what is computed; the arithmetic is that of
// token_attention.py and upscaling.py.
//
// Matrices are row-major. "bfloat16" arrays are uint16_t here. What belongs to tokens comes and goes as 8 heads x tokens
// x 256 channels, with a stride between heads. In here a row is token * 8 + head, with tokens padded to a multiple of 4:
// so a softmax over tokens adds up lanes of registers that hold two tokens with 8 heads each.
//
// Products go through tiles of 16 x 32 bfloat16: AMX where the CPU has it, AVX-512 otherwise. Right operands are packed
// beforehand into tiles of 16 rows, each of 16 columns of two consecutive k (Intel's "VNNI" layout), which both read.
//
// Source of the formats: Intel 64 and IA-32 Architectures Software Developer's Manual, TDPBF16PS and VDPBF16PS.

#include "numbers.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

using namespace samovar;

typedef uint16_t bf16;

constexpr int MAX_ROWS = MAX_TOKENS * HEADS;
constexpr int BLOCK = 64;      // positions: one row of the image's 64 x 64
constexpr int TILE = 16;       // rows and columns of a tile of results
constexpr int DEPTH = 32;      // k of a tile
constexpr int TILE_SIZE = TILE * DEPTH;
constexpr int MIDDLE = 64;    // channels after the first transposed convolution
constexpr int LAST = 32;      // and after the second
constexpr int MAX_MASKS = 4;

enum Isa { AVX512 = 0, AMX = 1 };

// ---------------------------------------------------------------------------------------------------------------------
// Numbers

inline __m512 widen(__m256i halves) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

inline __m512 load_bf16(const bf16* from) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

inline void store_bf16(bf16* to, __m512 values) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(values));
}

// Two neighbours each in one bfloat16 pair: even from `low`, odd from `high`.
inline __m512i interleaved(__m512 low, __m512 high) {
    alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                   8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_load_si512(order), (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

// GELU is x/2 + |x| h(|x|) with h(a) = erf(a / sqrt 2) / 2. In 32 segments h is a parabola to within 6e-6; beyond the
// last it is 1/2.
constexpr float SEGMENTS_PER_UNIT = 7.0f;

struct Gelu {
    alignas(64) float coefficients[3][32];

    void fill() {
        for (int segment = 0; segment < 32; ++segment) {
            // Through h at the Chebyshev nodes of the segment.
            double at[3], h[3];
            for (int node = 0; node < 3; ++node) {
                const double place = 0.5 - 0.5 * std::cos(M_PI * (2 * node + 1) / 6);
                at[node] = (segment + place) / SEGMENTS_PER_UNIT;
                h[node] = 0.5 * std::erf(at[node] / std::sqrt(2.0));
            }
            const double first = (h[1] - h[0]) / (at[1] - at[0]);
            const double second = ((h[2] - h[1]) / (at[2] - at[1]) - first) / (at[2] - at[0]);
            coefficients[2][segment] = float(second);
            coefficients[1][segment] = float(first - second * (at[0] + at[1]));
            coefficients[0][segment] = float(h[0] - first * at[0] + second * at[0] * at[1]);
        }
    }

    inline __m512 look_up(int power, __m512i segment) const {
        return _mm512_permutex2var_ps(_mm512_load_ps(coefficients[power]), segment,
                                      _mm512_load_ps(coefficients[power] + 16));
    }

    inline __m512 operator()(__m512 x) const {
        const __m512 size = _mm512_abs_ps(x);
        const __m512i segment = _mm512_cvttps_epi32(_mm512_mul_ps(size, _mm512_set1_ps(SEGMENTS_PER_UNIT)));
        __m512 h = _mm512_fmadd_ps(look_up(2, segment), size, look_up(1, segment));
        h = _mm512_fmadd_ps(h, size, look_up(0, segment));
        const __mmask16 beyond = _mm512_cmpgt_epi32_mask(segment, _mm512_set1_epi32(31));
        h = _mm512_mask_mov_ps(h, beyond, _mm512_set1_ps(0.5f));
        return _mm512_fmadd_ps(size, h, _mm512_mul_ps(x, _mm512_set1_ps(0.5f)));
    }
};

Gelu gelu;

// ---------------------------------------------------------------------------------------------------------------------
// Layouts

inline void transpose_16x16(__m512i row[16]) {
    __m512i half[16];
    for (int i = 0; i < 16; i += 2) {
        half[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
        half[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        row[i] = _mm512_unpacklo_epi64(half[i], half[i + 2]);
        row[i + 1] = _mm512_unpackhi_epi64(half[i], half[i + 2]);
        row[i + 2] = _mm512_unpacklo_epi64(half[i + 1], half[i + 3]);
        row[i + 3] = _mm512_unpackhi_epi64(half[i + 1], half[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        half[i] = _mm512_shuffle_i32x4(row[i], row[i + 4], 0x88);
        half[i + 4] = _mm512_shuffle_i32x4(row[i], row[i + 4], 0xdd);
        half[i + 8] = _mm512_shuffle_i32x4(row[i + 8], row[i + 12], 0x88);
        half[i + 12] = _mm512_shuffle_i32x4(row[i + 8], row[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; ++i) {
        row[i] = _mm512_shuffle_i32x4(half[i], half[i + 8], 0x88);
        row[i + 8] = _mm512_shuffle_i32x4(half[i], half[i + 8], 0xdd);
    }
}

// What belongs to the tokens of one prompt: heads x tokens x channels.
struct Tokens {
    const float* values;
    long head_stride;
    int count;

    int rows() const { return (count + 3) / 4 * 4 * HEADS; }

    // The channels of a row; of those that pad, zeros.
    const float* row(int row) const {
        alignas(64) static const float none[CHANNELS] = {};
        const int token = row / HEADS;
        return token < count ? values + (row % HEADS) * head_stride + (long)token * CHANNELS : none;
    }
};

// Packs the transpose of all rows as a right operand with k = channel and a column for each row.
void pack_rows(const Tokens& tokens, bf16* packed) {
    const int steps = CHANNELS / DEPTH;
    for (int tile = 0; tile < tokens.rows() / TILE; ++tile)
        for (int step = 0; step < steps; ++step) {
            __m512i part[16];
            for (int n = 0; n < 16; ++n) {
                const float* from = tokens.row(tile * TILE + n) + step * DEPTH;
                part[n] = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + 16), _mm512_loadu_ps(from));
            }
            transpose_16x16(part);
            bf16* to = packed + (tile * steps + step) * TILE_SIZE;
            for (int pair = 0; pair < 16; ++pair) _mm512_storeu_si512(to + pair * 32, part[pair]);
        }
}

// Packs a right operand of k rows, of which row(i) is the ith, of `columns` columns.
template <class Row>
void pack_matrix(Row row, int k, int columns, bf16* packed) {
    const int steps = k / DEPTH;
    for (int pair = 0; pair < k / 2; ++pair) {
        const float *even = row(2 * pair), *odd = row(2 * pair + 1);
        bf16* to = packed + (pair / 16) * TILE_SIZE + (pair % 16) * 32;
        for (int column = 0; column < columns; column += TILE)
            _mm512_storeu_si512(to + (column / TILE) * steps * TILE_SIZE,
                                interleaved(_mm512_loadu_ps(even + column), _mm512_loadu_ps(odd + column)));
    }
}

// Packs a block of positions (64 x 256) as a right operand with k = position.
void pack_positions(const bf16* block, bf16* packed) {
    alignas(64) static const uint16_t lows[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                  8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    alignas(64) static const uint16_t highs[32] = {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
                                                   24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
    const __m512i low = _mm512_load_si512(lows), high = _mm512_load_si512(highs);
    const int steps = BLOCK / DEPTH;
    for (int pair = 0; pair < BLOCK / 2; ++pair) {
        const bf16* even = block + 2 * pair * CHANNELS;
        bf16* to = packed + (pair / 16) * TILE_SIZE + (pair % 16) * 32;
        for (int column = 0; column < CHANNELS; column += 32) {
            const __m512i a = _mm512_loadu_si512(even + column), b = _mm512_loadu_si512(even + CHANNELS + column);
            bf16* tile = to + (column / TILE) * steps * TILE_SIZE;
            _mm512_storeu_si512(tile, _mm512_permutex2var_epi16(a, low, b));
            _mm512_storeu_si512(tile + steps * TILE_SIZE, _mm512_permutex2var_epi16(a, high, b));
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Products: out (rows x 16 tiles) = a (rows x k) . b, or out += where ADD. `rows` is a multiple of 32.

template <int ISA>
struct Products;

// GCC's intrinsics for tiles do not tell it which memory they touch.
inline void settle_memory() { asm volatile("" ::: "memory"); }

// Eight tiles of 16 rows of 64 bytes: palette, first row, reserved, bytes in each row, rows.
struct alignas(64) Configuration {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr Configuration CONFIGURATION;

template <>
struct Products<AMX> {
    Products() { _tile_loadconfig(&CONFIGURATION); }
    ~Products() { _tile_release(); }

    template <bool ADD>
    void multiply(const bf16* a, int stride_a, int rows, int k, const bf16* b, int tiles, float* out, int stride) const {
        const int steps = k / DEPTH, bytes_a = 2 * stride_a, bytes = 4 * stride;
        int tile = 0;
        settle_memory();
        for (; tile + 1 < tiles; tile += 2)
            for (int row = 0; row < rows; row += 32) {
                float* to = out + row * stride + tile * TILE;
                if (ADD) {
                    _tile_loadd(0, to, bytes);
                    _tile_loadd(1, to + TILE, bytes);
                    _tile_loadd(2, to + 16 * stride, bytes);
                    _tile_loadd(3, to + 16 * stride + TILE, bytes);
                } else {
                    _tile_zero(0);
                    _tile_zero(1);
                    _tile_zero(2);
                    _tile_zero(3);
                }
                for (int step = 0; step < steps; ++step) {
                    _tile_loadd(4, a + row * stride_a + step * DEPTH, bytes_a);
                    _tile_loadd(5, a + (row + 16) * stride_a + step * DEPTH, bytes_a);
                    _tile_loadd(6, b + (tile * steps + step) * TILE_SIZE, 64);
                    _tile_loadd(7, b + ((tile + 1) * steps + step) * TILE_SIZE, 64);
                    _tile_dpbf16ps(0, 4, 6);
                    _tile_dpbf16ps(1, 4, 7);
                    _tile_dpbf16ps(2, 5, 6);
                    _tile_dpbf16ps(3, 5, 7);
                }
                _tile_stored(0, to, bytes);
                _tile_stored(1, to + TILE, bytes);
                _tile_stored(2, to + 16 * stride, bytes);
                _tile_stored(3, to + 16 * stride + TILE, bytes);
            }
        for (int row = 0; tile < tiles && row < rows; row += 32) {
            float* to = out + row * stride + tile * TILE;
            if (ADD) {
                _tile_loadd(0, to, bytes);
                _tile_loadd(2, to + 16 * stride, bytes);
            } else {
                _tile_zero(0);
                _tile_zero(2);
            }
            for (int step = 0; step < steps; ++step) {
                _tile_loadd(4, a + row * stride_a + step * DEPTH, bytes_a);
                _tile_loadd(5, a + (row + 16) * stride_a + step * DEPTH, bytes_a);
                _tile_loadd(6, b + (tile * steps + step) * TILE_SIZE, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(2, 5, 6);
            }
            _tile_stored(0, to, bytes);
            _tile_stored(2, to + 16 * stride, bytes);
        }
        settle_memory();
    }
};

template <>
struct Products<AVX512> {
    template <bool ADD, int WIDTH>
    static void strip(const bf16* a, int stride_a, int rows, int steps, const bf16* b, float* out, int stride) {
        for (int row = 0; row < rows; row += 4) {
            __m512 sum[4][WIDTH];
            for (int i = 0; i < 4; ++i)
                for (int j = 0; j < WIDTH; ++j)
                    sum[i][j] = ADD ? _mm512_loadu_ps(out + (row + i) * stride + j * TILE) : _mm512_setzero_ps();
            for (int step = 0; step < steps; ++step)
                for (int pair = 0; pair < 16; ++pair) {
                    __m512bh right[WIDTH];
                    for (int j = 0; j < WIDTH; ++j)
                        right[j] = (__m512bh)_mm512_loadu_si512(b + (j * steps + step) * TILE_SIZE + pair * 32);
                    for (int i = 0; i < 4; ++i) {
                        int both;
                        std::memcpy(&both, a + (row + i) * stride_a + step * DEPTH + 2 * pair, sizeof both);
                        const __m512bh left = (__m512bh)_mm512_set1_epi32(both);
                        for (int j = 0; j < WIDTH; ++j) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], left, right[j]);
                    }
                }
            for (int i = 0; i < 4; ++i)
                for (int j = 0; j < WIDTH; ++j) _mm512_storeu_ps(out + (row + i) * stride + j * TILE, sum[i][j]);
        }
    }

    template <bool ADD>
    void multiply(const bf16* a, int stride_a, int rows, int k, const bf16* b, int tiles, float* out, int stride) const {
        const long steps = k / DEPTH;
        int tile = 0;
        for (; tile + 4 <= tiles; tile += 4)
            strip<ADD, 4>(a, stride_a, rows, steps, b + tile * steps * TILE_SIZE, out + tile * TILE, stride);
        for (; tile < tiles; ++tile)
            strip<ADD, 1>(a, stride_a, rows, steps, b + tile * steps * TILE_SIZE, out + tile * TILE, stride);
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// Attention of the tokens to the image, over blocks

// Beyond its maximum so far a score may grow by this before sums are scaled anew: e^8 is far from any limit.
constexpr float HEADROOM = 8.0f;

struct Look {
    const int rows;
    alignas(64) bf16 query[MAX_ROWS * CHANNELS];      // packed
    alignas(64) float scores[BLOCK * MAX_ROWS];       // position x row
    alignas(64) bf16 weights[MAX_ROWS * BLOCK];       // row x position
    alignas(64) bf16 values[BLOCK * CHANNELS];        // packed
    alignas(64) float sums[MAX_ROWS * CHANNELS];      // row x channel
    alignas(64) float shares[MAX_ROWS];
    alignas(64) float highest[MAX_ROWS];

    explicit Look(const Tokens& queries) : rows(queries.rows()) {
        pack_rows(queries, query);
        std::fill(sums, sums + rows * CHANNELS, 0.0f);
        std::fill(shares, shares + rows, 0.0f);
        std::fill(highest, highest + rows, -std::numeric_limits<float>::infinity());
    }

    // Looks at one block of positions, `positioned` with the position encoding added; both 64 x 256.
    template <class P>
    void at(const P& products, const bf16* image, const bf16* positioned) {
        products.template multiply<false>(positioned, CHANNELS, BLOCK, CHANNELS, query, rows / TILE, scores, rows);
        for (int row = 0; row < rows; row += 16) {
            __m512 high = _mm512_loadu_ps(scores + row);
            for (int position = 1; position < BLOCK; ++position)
                high = _mm512_max_ps(high, _mm512_loadu_ps(scores + position * rows + row));
            raise(row, high);
            const __m512 base = _mm512_load_ps(highest + row);
            __m512 share = _mm512_load_ps(shares + row);
            for (int half = 0; half < BLOCK; half += 32) {
                __m512i part[16];
                for (int pair = 0; pair < 16; ++pair) {
                    const float* from = scores + (half + 2 * pair) * rows + row;
                    const __m512 even = exponential(_mm512_sub_ps(_mm512_loadu_ps(from), base));
                    const __m512 odd = exponential(_mm512_sub_ps(_mm512_loadu_ps(from + rows), base));
                    share = _mm512_add_ps(share, _mm512_add_ps(even, odd));
                    part[pair] = interleaved(even, odd);
                }
                transpose_16x16(part);
                for (int i = 0; i < 16; ++i) _mm512_storeu_si512(weights + (row + i) * BLOCK + half, part[i]);
            }
            _mm512_store_ps(shares + row, share);
        }
        pack_positions(image, values);
        products.template multiply<true>(weights, BLOCK, rows, BLOCK, values, CHANNELS / TILE, sums, CHANNELS);
    }

    // Writes the weighted means of the values, heads x tokens x channels, and the logarithms of the softmax's sums,
    // heads x tokens; a head's come `head_stride` tokens after those of the one before.
    void finish(int tokens, long head_stride, float* means, float* logsumexp) const {
        for (int row = 0; row < tokens * HEADS; ++row) {
            const long to = (row % HEADS) * head_stride + row / HEADS;
            const __m512 factor = _mm512_set1_ps(1.0f / shares[row]);
            for (int column = 0; column < CHANNELS; column += 16)
                _mm512_storeu_ps(means + to * CHANNELS + column,
                                 _mm512_mul_ps(factor, _mm512_load_ps(sums + row * CHANNELS + column)));
            logsumexp[to] = highest[row] + std::log(shares[row]);
        }
    }

   private:
    void raise(int row, __m512 high) {
        const __m512 before = _mm512_load_ps(highest + row);
        const __mmask16 beyond =
            _mm512_cmp_ps_mask(high, _mm512_add_ps(before, _mm512_set1_ps(HEADROOM)), _CMP_GT_OQ);
        if (!beyond) return;
        const __m512 after = _mm512_mask_mov_ps(before, beyond, high);
        alignas(64) float factors[16];
        // Where nothing was seen yet this is 0 times 0.
        _mm512_store_ps(factors, exponential(_mm512_sub_ps(before, after)));
        _mm512_store_ps(highest + row, after);
        _mm512_store_ps(shares + row, _mm512_mul_ps(_mm512_load_ps(shares + row), _mm512_load_ps(factors)));
        for (int i = 0; i < 16; ++i) {
            if (!(beyond >> i & 1)) continue;
            const __m512 factor = _mm512_set1_ps(factors[i]);
            float* sum = sums + (row + i) * CHANNELS;
            for (int column = 0; column < CHANNELS; column += 16)
                _mm512_store_ps(sum + column, _mm512_mul_ps(factor, _mm512_load_ps(sum + column)));
        }
    }
};

inline void add_position(const bf16* image, const bf16* position, bf16* positioned) {
    for (int i = 0; i < BLOCK * CHANNELS; i += 16)
        store_bf16(positioned + i, _mm512_add_ps(load_bf16(image + i), load_bf16(position + i)));
}

// ---------------------------------------------------------------------------------------------------------------------
// Attention of the image to the tokens

struct Update {
    const int rows;
    const float* norm_weight;
    const float* norm_bias;
    const float epsilon;
    alignas(64) bf16 vectors[MAX_ROWS * CHANNELS];  // packed
    alignas(64) bf16 values[MAX_ROWS * CHANNELS];   // packed
    alignas(64) float offsets[MAX_ROWS];
    alignas(64) float scores[BLOCK * MAX_ROWS];
    alignas(64) bf16 shares[BLOCK * MAX_ROWS];
    alignas(64) float found[BLOCK * CHANNELS];

    Update(const Tokens& side_vectors, const float* side_offsets, const Tokens& side_values, const float* norm_weight,
           const float* norm_bias, float epsilon)
        : rows(side_vectors.rows()), norm_weight(norm_weight), norm_bias(norm_bias), epsilon(epsilon) {
        pack_rows(side_vectors, vectors);
        pack_matrix([&](int row) { return side_values.row(row); }, rows, CHANNELS, values);
        for (int row = 0; row < rows; ++row) {
            const int token = row / HEADS;
            const long from = (row % HEADS) * (side_vectors.head_stride / CHANNELS) + token;
            // What pads gets no share.
            offsets[row] = token < side_vectors.count ? side_offsets[from] : -1e30f;
        }
    }

    // Writes a block of the image after its attention and norm, with and without its position encoding.
    template <class P>
    void at(const P& products, const bf16* image, const bf16* position, bf16* positioned, bf16* updated) {
        add_position(image, position, positioned);
        products.template multiply<false>(positioned, CHANNELS, BLOCK, CHANNELS, vectors, rows / TILE, scores, rows);
        for (int at = 0; at < BLOCK; ++at) softmax_over_tokens(scores + at * rows, shares + at * rows);
        products.template multiply<false>(shares, rows, BLOCK, rows, values, CHANNELS / TILE, found, CHANNELS);
        for (int at = 0; at < BLOCK; ++at) {
            const long here = at * CHANNELS;
            norm(image + here, found + here, position + here, updated + here, positioned + here);
        }
    }

   private:
    void softmax_over_tokens(float* score, bf16* share) const {
        // A register holds two tokens: what belongs to one head is 8 lanes apart.
        __m512 high = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
        for (int row = 0; row < rows; row += 16) {
            const __m512 moved = _mm512_add_ps(_mm512_loadu_ps(score + row), _mm512_load_ps(offsets + row));
            _mm512_storeu_ps(score + row, moved);
            high = _mm512_max_ps(high, moved);
        }
        high = _mm512_max_ps(high, _mm512_shuffle_f32x4(high, high, 0x4e));
        __m512 sum = _mm512_setzero_ps();
        for (int row = 0; row < rows; row += 16) {
            const __m512 grown = exponential(_mm512_sub_ps(_mm512_loadu_ps(score + row), high));
            _mm512_storeu_ps(score + row, grown);
            sum = _mm512_add_ps(sum, grown);
        }
        sum = _mm512_add_ps(sum, _mm512_shuffle_f32x4(sum, sum, 0x4e));
        const __m512 factor = _mm512_div_ps(_mm512_set1_ps(1.0f), sum);
        for (int row = 0; row < rows; row += 16)
            store_bf16(share + row, _mm512_mul_ps(factor, _mm512_loadu_ps(score + row)));
    }

    void norm(const bf16* image, const float* added, const bf16* position, bf16* updated, bf16* positioned) const {
        __m512 value[16];
        for (int i = 0; i < 16; ++i)
            value[i] = _mm512_add_ps(load_bf16(image + 16 * i), _mm512_load_ps(added + 16 * i));
        normalise<CHANNELS>(value, epsilon);
        for (int i = 0; i < 16; ++i) {
            const __m512 normed =
                _mm512_fmadd_ps(value[i], _mm512_loadu_ps(norm_weight + 16 * i), _mm512_loadu_ps(norm_bias + 16 * i));
            store_bf16(updated + 16 * i, normed);
            store_bf16(positioned + 16 * i, _mm512_add_ps(normed, load_bf16(position + 16 * i)));
        }
    }
};

template <int ISA>
void look(const bf16* image, const bf16* position, int positions, const Tokens& query, float* means, float* logsumexp) {
    const Products<ISA> products;
    Look looking(query);
    alignas(64) bf16 positioned[BLOCK * CHANNELS];
    for (int first = 0; first < positions; first += BLOCK) {
        const long here = (long)first * CHANNELS;
        add_position(image + here, position + here, positioned);
        looking.at(products, image + here, positioned);
    }
    looking.finish(query.count, query.head_stride / CHANNELS, means, logsumexp);
}

template <int ISA>
void update_and_look(const bf16* image, const bf16* position, int positions, const Tokens& vectors,
                     const float* offsets, const Tokens& values, const float* norm_weight, const float* norm_bias,
                     float epsilon, const Tokens& query, bf16* updated, float* means, float* logsumexp) {
    const Products<ISA> products;
    Update update(vectors, offsets, values, norm_weight, norm_bias, epsilon);
    Look looking(query);
    alignas(64) bf16 positioned[BLOCK * CHANNELS];
    for (int first = 0; first < positions; first += BLOCK) {
        const long here = (long)first * CHANNELS;
        update.at(products, image + here, position + here, positioned, updated + here);
        looking.at(products, updated + here, positioned);
    }
    looking.finish(query.count, query.head_stride / CHANNELS, means, logsumexp);
}

// ---------------------------------------------------------------------------------------------------------------------
// Upscaling

template <int ISA>
void upscale(const bf16* image, int positions, const bf16* first_weight, const float* first_bias,
             const float* norm_weight, const float* norm_bias, float epsilon, const bf16* second_weight,
             const float* second_bias, const float* vectors, int masks, float* logits, long mask_stride) {
    const Products<ISA> products;
    // Sixteen columns: four masks for each of a position's four places in the second convolution.
    alignas(64) float blocks[4 * LAST * TILE] = {};
    for (int place = 0; place < 4; ++place)
        for (int mask = 0; mask < masks; ++mask)
            for (int channel = 0; channel < LAST; ++channel)
                blocks[(place * LAST + channel) * TILE + place * MAX_MASKS + mask] = vectors[mask * LAST + channel];
    alignas(64) bf16 packed[4 * LAST * TILE];
    pack_matrix([&](int row) { return blocks + row * TILE; }, 4 * LAST, TILE, packed);

    alignas(64) float wide[BLOCK * CHANNELS];
    alignas(64) bf16 middle[BLOCK * CHANNELS];
    alignas(64) float wider[BLOCK * 4 * LAST];
    alignas(64) bf16 last[BLOCK * 4 * LAST];
    alignas(64) float found[BLOCK * TILE];
    const int side = BLOCK * 4;  // logits in a row of the mask
    for (int first = 0; first < positions; first += BLOCK) {
        products.template multiply<false>(image + (long)first * CHANNELS, CHANNELS, BLOCK, CHANNELS, first_weight,
                                          CHANNELS / TILE, wide, CHANNELS);
        // Each position is four now, of 64 channels.
        for (int at = 0; at < BLOCK * CHANNELS; at += MIDDLE) {
            __m512 value[4];
            for (int i = 0; i < 4; ++i)
                value[i] = _mm512_add_ps(_mm512_load_ps(wide + at + 16 * i), _mm512_loadu_ps(first_bias + 16 * i));
            normalise<MIDDLE>(value, epsilon);
            for (int i = 0; i < 4; ++i) {
                const __m512 normed = _mm512_fmadd_ps(value[i], _mm512_loadu_ps(norm_weight + 16 * i),
                                                      _mm512_loadu_ps(norm_bias + 16 * i));
                store_bf16(middle + at + 16 * i, gelu(normed));
            }
        }
        // In quarters: the four places of 16 positions each.
        for (int quarter = 0; quarter < 4; ++quarter) {
            products.template multiply<false>(middle + quarter * BLOCK * MIDDLE, MIDDLE, BLOCK, MIDDLE, second_weight,
                                              4 * LAST / TILE, wider, 4 * LAST);
            for (int at = 0; at < BLOCK; ++at)
                for (int i = 0; i < 4 * LAST; i += 16)
                    store_bf16(last + at * 4 * LAST + i, gelu(_mm512_add_ps(_mm512_load_ps(wider + at * 4 * LAST + i),
                                                                           _mm512_loadu_ps(second_bias + i))));
            products.template multiply<false>(last, 4 * LAST, BLOCK, 4 * LAST, packed, 1, found, TILE);
            for (int mask = 0; mask < masks; ++mask) {
                float* to = logits + mask * mask_stride + (long)(first / BLOCK) * 4 * side;
                for (int at = 0; at < BLOCK; ++at) {
                    const int x = quarter * 16 + at / 4, a = at / 2 % 2, b = at % 2;
                    float* corner = to + 2 * a * side + 4 * x + 2 * b;
                    const float* from = found + at * TILE + mask;
                    corner[0] = from[0];
                    corner[1] = from[MAX_MASKS];
                    corner[side] = from[2 * MAX_MASKS];
                    corner[side + 1] = from[3 * MAX_MASKS];
                }
            }
        }
    }
}

}  // namespace

extern "C" {

// The digest of the sources that this was compiled from.
const char* samovar_sources() { return SAMOVAR_SOURCES; }

// Prepares the process. Returns 0 if it may use the tiles of AMX, and otherwise something else.
int samovar_begin() {
    gelu.fill();
#if defined(__linux__)
    constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18;
    return (int)syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA);
#else
    return 1;
#endif
}

// Packs a right operand, k x columns.
void samovar_pack(const float* matrix, int k, int columns, uint16_t* packed) {
    pack_matrix([=](int row) { return matrix + (long)row * columns; }, k, columns, packed);
}

void samovar_look(int isa, const uint16_t* image, const uint16_t* position, int positions, const float* query,
                  int tokens, long head_stride, float* means, float* logsumexp) {
    (isa == AMX ? look<AMX> : look<AVX512>)(image, position, positions, Tokens{query, head_stride, tokens}, means,
                                            logsumexp);
}

void samovar_update_and_look(int isa, const uint16_t* image, const uint16_t* position, int positions,
                             const float* vectors, const float* offsets, const float* values, const float* norm_weight,
                             const float* norm_bias, float epsilon, const float* query, int tokens, long head_stride,
                             uint16_t* updated, float* means, float* logsumexp) {
    (isa == AMX ? update_and_look<AMX> : update_and_look<AVX512>)(
        image, position, positions, Tokens{vectors, head_stride, tokens}, offsets, Tokens{values, head_stride, tokens},
        norm_weight, norm_bias, epsilon, Tokens{query, head_stride, tokens}, updated, means, logsumexp);
}

void samovar_upscale(int isa, const uint16_t* image, int positions, const uint16_t* first_weight,
                     const float* first_bias, const float* norm_weight, const float* norm_bias, float epsilon,
                     const uint16_t* second_weight, const float* second_bias, const float* vectors, int masks,
                     float* logits, long mask_stride) {
    (isa == AMX ? upscale<AMX> : upscale<AVX512>)(image, positions, first_weight, first_bias, norm_weight, norm_bias,
                                                  epsilon, second_weight, second_bias, vectors, masks, logits,
                                                  mask_stride);
}
}
