// From 256 x 256 logits to a mask in pixels of the picture: the two resizes of masks.py composed, three inputs an output
// on each axis, and compared with the threshold while they are in registers.

#include "numbers.h"

namespace {

using namespace samovar;

constexpr int SIDE = 256;

}  // namespace

extern "C" {

// Writes a rectangle of the mask, rows x columns bytes of 0 or 1.
//
// For a row, `row_first` is its first input and `row_weights` the weights of that and the next two; for a column
// likewise, weights being 3 x columns. In each 16 columns from the rectangle's first, inputs lie within 16 of the first's.
void samovar_threshold(const float* logits, float threshold, const int* row_first, const float* row_weights, int rows,
                       const int* column_first, const float* column_weights, int columns, uint8_t* mask) {
    alignas(64) float line[SIDE + 32] = {};
    for (int row = 0; row < rows; ++row) {
        const float* from = logits + row_first[row] * SIDE;
        // What has no weight may lie below the last line.
        const int last = SIDE - 1 - row_first[row];
        const float* second = from + std::min(1, last) * SIDE;
        const float* third = from + std::min(2, last) * SIDE;
        const __m512 w0 = _mm512_set1_ps(row_weights[3 * row]);
        const __m512 w1 = _mm512_set1_ps(row_weights[3 * row + 1]);
        const __m512 w2 = _mm512_set1_ps(row_weights[3 * row + 2]);
        for (int i = 0; i < SIDE; i += 16) {
            __m512 sum = _mm512_mul_ps(w0, _mm512_loadu_ps(from + i));
            sum = _mm512_fmadd_ps(w1, _mm512_loadu_ps(second + i), sum);
            _mm512_store_ps(line + i, _mm512_fmadd_ps(w2, _mm512_loadu_ps(third + i), sum));
        }
        uint8_t* to = mask + (long)row * columns;
        for (int column = 0; column < columns; column += 16) {
            const int count = std::min(16, columns - column);
            const __mmask16 those = (__mmask16)((1u << count) - 1);
            const int base = column_first[column];
            const __m512i places =
                _mm512_sub_epi32(_mm512_maskz_loadu_epi32(those, column_first + column), _mm512_set1_epi32(base));
            const __m512 inputs = _mm512_loadu_ps(line + base), later = _mm512_loadu_ps(line + base + 16);
            const __m512i one = _mm512_set1_epi32(1);
            const __m512i next = _mm512_add_epi32(places, one);
            __m512 sum = _mm512_mul_ps(_mm512_maskz_loadu_ps(those, column_weights + column),
                                       _mm512_permutexvar_ps(places, inputs));
            sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(those, column_weights + columns + column),
                                  _mm512_permutex2var_ps(inputs, next, later), sum);
            sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(those, column_weights + 2 * columns + column),
                                  _mm512_permutex2var_ps(inputs, _mm512_add_epi32(next, one), later), sum);
            const __mmask16 above = _mm512_mask_cmp_ps_mask(those, sum, _mm512_set1_ps(threshold), _CMP_GT_OQ);
            _mm_mask_storeu_epi8(to + column, those, _mm_maskz_set1_epi8(above, 1));
        }
    }
}
}
