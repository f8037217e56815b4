// How attention reads, keeps and multiplies numbers: bfloat16, as a linear layer left them for the next product, or
// float32, where nothing is rounded.
//
// A format says what a number is, of how many channels a head's part is a multiple, and what multiplies. Left operands have
// 32 rows: they are panels, see sam/compiled/panels.h. `put` writes 16 numbers of a row of one, or 32.

#pragma once

#include "sam/compiled/panels.h"

namespace samovar {

template <int ISA>
struct Half {
    using Number = bf16;
    static constexpr int MULTIPLE = DEPTH;

    using Products = PanelProducts<ISA>;

    static void put(bf16* to, __m512 values) { store_bf16(to, values); }
    static void put(bf16* to, __m512 low, __m512 high) {
        _mm512_store_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }

    // 2^x, to within 8e-5 relative, a twentieth of what is rounded off; 0 far below.
    static __m512 power_of_two(__m512 x) {
        const __m512 r = _mm512_reduce_ps(x, 0x09);  // x - floor(x)
        __m512 p = _mm512_set1_ps(0.07790716f);
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.22623319f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.69577710f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.99992783f));
        return _mm512_scalef_ps(p, x);
    }

    // Packs 16 rows of 32 numbers, or fewer: a tile of a right operand whose columns they are.
    static void pack_columns(const bf16* const row[TILE], int count, bf16* to) {
        const __mmask32 some = count >= DEPTH ? ~0u : (1u << count) - 1;
        __m512i part[TILE];
        for (int n = 0; n < TILE; ++n)
            part[n] = row[n] ? _mm512_maskz_loadu_epi16(some, row[n]) : _mm512_setzero_si512();
        transpose_16x16(part);
        for (int pair = 0; pair < TILE; ++pair) _mm512_storeu_si512(to + pair * 32, part[pair]);
    }
    static constexpr int COLUMN_DEPTH = DEPTH;  // k of such a tile

    // Packs a part of a right operand: 16 columns of two rows, `pair` and the one after it in units of two.
    static void pack_rows(const bf16* even, const bf16* odd, int pair, bf16* tile) {
        alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
        const __m256i a = even ? _mm256_loadu_si256((const __m256i*)even) : _mm256_setzero_si256();
        const __m256i b = odd ? _mm256_loadu_si256((const __m256i*)odd) : _mm256_setzero_si256();
        const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
        _mm512_storeu_si512(tile + pair * 32, _mm512_permutexvar_epi16(_mm512_load_si512(order), both));
    }
};

struct Single {
    using Number = float;
    static constexpr int MULTIPLE = TILE;

    using Products = PanelProducts<AVX512>;

    static void put(float* to, __m512 values) { _mm512_storeu_ps(to, values); }
    static void put(float* to, __m512 low, __m512 high) {
        _mm512_storeu_ps(to, low);
        _mm512_storeu_ps(to + PANEL * TILE, high);  // the next step's
    }

    // 2^x, to within 2e-7 relative; 0 far below.
    static __m512 power_of_two(__m512 x) {
        const __m512 r = _mm512_sub_ps(x, _mm512_roundscale_ps(x, 8));  // to the nearest integer
        __m512 p = _mm512_set1_ps(1.537070481e-04f);
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.339984829e-03f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.618373251e-03f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.550329035e-02f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.402264846e-01f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.931472056e-01f));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
        return _mm512_scalef_ps(p, _mm512_roundscale_ps(x, 8));
    }

    static void pack_columns(const float* const row[TILE], int count, float* to) {
        __m512i part[TILE];
        for (int n = 0; n < TILE; ++n) part[n] = row[n] ? _mm512_loadu_si512(row[n]) : _mm512_setzero_si512();
        transpose_16x16(part);
        for (int n = 0; n < TILE; ++n) _mm512_storeu_si512(to + n * TILE, part[n]);
    }
    static constexpr int COLUMN_DEPTH = TILE;

    static void pack_rows(const float* even, const float* odd, int pair, float* tile) {
        _mm512_storeu_ps(tile + 2 * pair * TILE, even ? _mm512_loadu_ps(even) : _mm512_setzero_ps());
        _mm512_storeu_ps(tile + (2 * pair + 1) * TILE, odd ? _mm512_loadu_ps(odd) : _mm512_setzero_ps());
    }
};

}  // namespace samovar
