// Numbers and shapes that both sides of the fused decoder share.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace samovar {

constexpr int CHANNELS = 256;
constexpr int HEADS = 8;
constexpr int MAX_TOKENS = 32;

// Relative error below 3e-6; 0 far below.
inline __m512 exponential(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
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

}  // namespace samovar
