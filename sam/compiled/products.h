// Products of matrices in bfloat16, summed up in float32; by AVX-512 also of matrices in float32.
//
// They go through tiles of 16 x 32 bfloat16: AMX where the CPU has it, AVX-512 otherwise. Right operands are packed
// beforehand into tiles of 16 rows, each of 16 columns of two consecutive k (Intel's "VNNI" layout), which both read; in
// float32, of 16 columns of one k. Matrices are row-major otherwise.
//
// Source of the formats: Intel 64 and IA-32 Architectures Software Developer's Manual, TDPBF16PS and VDPBF16PS.

#pragma once

#include "sam/compiled/numbers.h"

namespace samovar {

constexpr int TILE = 16;   // rows and columns of a tile of results
constexpr int DEPTH = 32;  // k of a tile
constexpr int TILE_SIZE = TILE * DEPTH;

enum Isa { AVX512 = 0, AMX = 1 };

// How many steps early what tiles will read is fetched into the first-level cache: loading a tile waits for its memory, and
// what follows waits for it.
constexpr int EARLY = 2;

inline void fetch(const bf16* from, int lines) {
    // Else GCC works out sixteen addresses where `from` is one of two.
    asm volatile("" : "+r"(from));
    for (int i = 0; i < lines; ++i) _mm_prefetch(reinterpret_cast<const char*>(from + 32 * i), _MM_HINT_T0);
}

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

// Out (rows x 16 tiles) = a (rows x k) . b, or out += where ADD. `rows` is a multiple of 32.

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

// The sums of 32 rows and one or two columns of tiles, in tiles 0 to 3: 0 and 2 the first column, 1 and 3 the second.
template <bool ADD, bool BOTH>
inline void begin_sums(const float* out, int stride) {
    const int bytes = 4 * stride;
    if (ADD) {
        _tile_loadd(0, out, bytes);
        if (BOTH) _tile_loadd(1, out + TILE, bytes);
        _tile_loadd(2, out + 16 * stride, bytes);
        if (BOTH) _tile_loadd(3, out + 16 * stride + TILE, bytes);
    } else {
        _tile_zero(0);
        if (BOTH) _tile_zero(1);
        _tile_zero(2);
        if (BOTH) _tile_zero(3);
    }
}

template <bool BOTH>
inline void end_sums(float* out, int stride) {
    const int bytes = 4 * stride;
    _tile_stored(0, out, bytes);
    if (BOTH) _tile_stored(1, out + TILE, bytes);
    _tile_stored(2, out + 16 * stride, bytes);
    if (BOTH) _tile_stored(3, out + 16 * stride + TILE, bytes);
}

template <>
struct Products<AMX> {
    Products() { _tile_loadconfig(&CONFIGURATION); }
    ~Products() { _tile_release(); }

    template <bool ADD>
    void multiply(const bf16* a, int stride_a, int rows, int k, const bf16* b, int tiles, float* out, int stride) const {
        const int steps = k / DEPTH, bytes_a = 2 * stride_a;
        int tile = 0;
        settle_memory();
        for (; tile + 1 < tiles; tile += 2)
            for (int row = 0; row < rows; row += 32) {
                float* to = out + row * stride + tile * TILE;
                begin_sums<ADD, true>(to, stride);
                const bf16 *left = b + tile * steps * TILE_SIZE, *right = left + steps * TILE_SIZE;
                for (int step = 0; step < steps; ++step, left += TILE_SIZE, right += TILE_SIZE) {
                    // After the last step of these two columns of tiles comes the first of the next two.
                    const int turn = step + EARLY < steps ? 0 : steps * TILE_SIZE;
                    _tile_loadd(4, a + row * stride_a + step * DEPTH, bytes_a);
                    _tile_loadd(5, a + (row + 16) * stride_a + step * DEPTH, bytes_a);
                    _tile_loadd(6, left, 64);
                    _tile_loadd(7, right, 64);
                    _tile_dpbf16ps(0, 4, 6);
                    fetch(left + EARLY * TILE_SIZE + turn, 16);
                    _tile_dpbf16ps(1, 4, 7);
                    fetch(right + EARLY * TILE_SIZE + turn, 16);
                    _tile_dpbf16ps(2, 5, 6);
                    _tile_dpbf16ps(3, 5, 7);
                }
                end_sums<true>(to, stride);
            }
        for (int row = 0; tile < tiles && row < rows; row += 32) {
            float* to = out + row * stride + tile * TILE;
            begin_sums<ADD, false>(to, stride);
            for (int step = 0; step < steps; ++step) {
                _tile_loadd(4, a + row * stride_a + step * DEPTH, bytes_a);
                _tile_loadd(5, a + (row + 16) * stride_a + step * DEPTH, bytes_a);
                _tile_loadd(6, b + (tile * steps + step) * TILE_SIZE, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(2, 5, 6);
            }
            end_sums<false>(to, stride);
        }
        settle_memory();
    }
};

// How AVX-512 multiplies a kind of numbers: a register of a right operand holds 16 columns of as many k as come TOGETHER.
template <class Number>
struct Arithmetic;

template <>
struct Arithmetic<bf16> {
    static constexpr int TOGETHER = 2;
    using Register = __m512bh;

    static Register load(const bf16* from) { return (__m512bh)_mm512_loadu_si512(from); }
    static Register spread(const bf16* from) {
        int both;
        std::memcpy(&both, from, sizeof both);
        return (__m512bh)_mm512_set1_epi32(both);
    }
    static __m512 add_product(__m512 sum, Register a, Register b) { return _mm512_dpbf16_ps(sum, a, b); }
};

template <>
struct Arithmetic<float> {
    static constexpr int TOGETHER = 1;
    using Register = __m512;

    static Register load(const float* from) { return _mm512_loadu_ps(from); }
    static Register spread(const float* from) { return _mm512_set1_ps(*from); }
    static __m512 add_product(__m512 sum, Register a, Register b) { return _mm512_fmadd_ps(a, b, sum); }
};

// Both kinds by AVX-512. Tiles of right operands have 64 bytes for each of their 16 rows, as do `a`'s from one step to the
// next: 32 of k in bfloat16, 16 in float32.
template <class Number>
struct Strips {
    using Kind = Arithmetic<Number>;
    static constexpr int STEP = TILE * Kind::TOGETHER;

    // `rows` is a multiple of 16; `stride_a` is from a row to the next, `step_a` from a step to the next.
    template <bool ADD>
    static void multiply(const Number* a, int stride_a, int step_a, int rows, int k, const Number* b, int tiles, float* out,
                         int stride) {
        const long steps = k / STEP;
        int tile = 0;
        for (; tile + 2 <= tiles; tile += 2)
            strip<ADD, 8, 2>(a, stride_a, step_a, rows, steps, b + tile * steps * TILE * STEP, out + tile * TILE, stride);
        if (tile < tiles)
            strip<ADD, 16, 1>(a, stride_a, step_a, rows, steps, b + tile * steps * TILE * STEP, out + tile * TILE, stride);
    }

   private:
    // ROWS x WIDTH sums at once: a product waits for the one before it in the same sum, and a CPU begins up to two in a
    // cycle of which each takes five or six. More than twelve keep it busy, and leave half of its loads to spare.
    template <bool ADD, int ROWS, int WIDTH>
    static void strip(const Number* a, int stride_a, int step_a, int rows, long steps, const Number* b, float* out,
                      int stride) {
        for (int row = 0; row < rows; row += ROWS) {
            __m512 sum[ROWS][WIDTH];
            for (int i = 0; i < ROWS; ++i)
                for (int j = 0; j < WIDTH; ++j)
                    sum[i][j] = ADD ? _mm512_loadu_ps(out + (row + i) * stride + j * TILE) : _mm512_setzero_ps();
            for (long step = 0; step < steps; ++step)
                for (int at = 0; at < TILE; ++at) {
                    typename Kind::Register right[WIDTH];
                    for (int j = 0; j < WIDTH; ++j) right[j] = Kind::load(b + ((j * steps + step) * TILE + at) * STEP);
                    for (int i = 0; i < ROWS; ++i) {
                        const auto left =
                            Kind::spread(a + (long)(row + i) * stride_a + step * step_a + at * Kind::TOGETHER);
                        for (int j = 0; j < WIDTH; ++j) sum[i][j] = Kind::add_product(sum[i][j], left, right[j]);
                    }
                }
            for (int i = 0; i < ROWS; ++i)
                for (int j = 0; j < WIDTH; ++j) _mm512_storeu_ps(out + (row + i) * stride + j * TILE, sum[i][j]);
        }
    }
};

template <>
struct Products<AVX512> {
    template <bool ADD>
    void multiply(const bf16* a, int stride_a, int rows, int k, const bf16* b, int tiles, float* out, int stride) const {
        Strips<bf16>::multiply<ADD>(a, stride_a, DEPTH, rows, k, b, tiles, out, stride);
    }
};

}  // namespace samovar
