// Numbers in registers of sixteen, and bfloat16, of which arrays are uint16_t here.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace samovar {

typedef uint16_t bf16;

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

// Relative error below 3e-6; far below, 2e-35. Of less, a share in a softmax may be denormal, which takes a hundred cycles.
inline __m512 exponential(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-80.0f));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.0f / 120);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

// A layer norm over N channels: `value` - mean, over the deviation.
template <int N>
inline void normalise(__m512 (&value)[N / 16], float epsilon) {
    __m512 sum = value[0];
    for (int i = 1; i < N / 16; ++i) sum = _mm512_add_ps(sum, value[i]);
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / N);
    __m512 squares = _mm512_setzero_ps();
    for (int i = 0; i < N / 16; ++i) {
        value[i] = _mm512_sub_ps(value[i], mean);
        squares = _mm512_fmadd_ps(value[i], value[i], squares);
    }
    const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / N + epsilon));
    for (int i = 0; i < N / 16; ++i) value[i] = _mm512_mul_ps(value[i], factor);
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

inline Gelu gelu;

}  // namespace samovar
