// From 256 x 256 logits to a mask in pixels of the picture: the two resizes of resizing.py composed, three inputs an
// output on each axis, and compared with the threshold while they are in registers.

#include "numbers.h"

namespace {

using namespace samovar;

constexpr int SIDE = 256;
constexpr int LANES = 16;
constexpr int GROUPS_AT_MOST = 4096;
constexpr int ROWS_AT_ONCE = 4;

struct Rectangle {
    int rows, columns;
    const int* row_first;
    const float* row_weights;
    const int* column_first;
    const float* column_weights;
};

// Makes one line of the rectangle, as wide as the inputs; adds to `hot` which of each 16 inputs exceed `low`.
inline void make_line(const float* logits, const Rectangle& to, int row, float low, float* line, uint16_t* hot) {
    const int first = to.row_first[row];
    const float* from = logits + first * SIDE;
    // What has no weight may lie below the last line.
    const int last = SIDE - 1 - first;
    const float* second = from + std::min(1, last) * SIDE;
    const float* third = from + std::min(2, last) * SIDE;
    const __m512 w0 = _mm512_set1_ps(to.row_weights[3 * row]);
    const __m512 w1 = _mm512_set1_ps(to.row_weights[3 * row + 1]);
    const __m512 w2 = _mm512_set1_ps(to.row_weights[3 * row + 2]);
    const __m512 floor = _mm512_set1_ps(low);
    for (int i = 0; i < SIDE; i += LANES) {
        __m512 sum = _mm512_mul_ps(w0, _mm512_loadu_ps(from + i));
        sum = _mm512_fmadd_ps(w1, _mm512_loadu_ps(second + i), sum);
        sum = _mm512_fmadd_ps(w2, _mm512_loadu_ps(third + i), sum);
        _mm512_store_ps(line + i, sum);
        hot[i / LANES] |= _mm512_cmp_ps_mask(sum, floor, _CMP_GT_OQ);
    }
}

// Where the mask lies, and how many pixels exceed the other two thresholds.
struct Seen {
    uint16_t columns[GROUPS_AT_MOST] = {};
    int top, bottom = -1;
    long inner = 0, outer = 0;
};

// Scales and compares ROWS rows from `first` on: what belongs to a column is loaded once for all of them.
template <bool COUNTING, int ROWS>
void scale_rows(const float* logits, float threshold, float high, float low, const Rectangle& to, int first,
                uint8_t* mask, Seen& seen) {
    alignas(64) float lines[ROWS][SIDE + 2 * LANES] = {};
    uint16_t hot[SIDE / LANES + 2] = {};
    for (int i = 0; i < ROWS; ++i) make_line(logits, to, first + i, low, lines[i], hot);
    const __m512i one = _mm512_set1_epi32(1);
    unsigned any[ROWS] = {};
    for (int column = 0, group = 0; column < to.columns; column += LANES, ++group) {
        const int count = std::min(LANES, to.columns - column);
        const __mmask16 those = (__mmask16)((1u << count) - 1);
        uint8_t* out = mask + (long)first * to.columns + column;
        const int base = to.column_first[column];
        // A mean exceeds nothing that none of its inputs does: 18 of them from `base` on.
        const int word = base / LANES, bit = base % LANES;
        const uint64_t near = hot[word] | (uint64_t)hot[word + 1] << 16 | (uint64_t)hot[word + 2] << 32;
        if (!((near >> bit) & 0x3ffff)) {
            for (int i = 0; i < ROWS; ++i) _mm_mask_storeu_epi8(out + (long)i * to.columns, those, _mm_setzero_si128());
            continue;
        }
        const __m512i places =
            _mm512_sub_epi32(_mm512_maskz_loadu_epi32(those, to.column_first + column), _mm512_set1_epi32(base));
        const __m512i next = _mm512_add_epi32(places, one), last = _mm512_add_epi32(next, one);
        const float* weights = to.column_weights + column;
        const __m512 w0 = _mm512_maskz_loadu_ps(those, weights);
        const __m512 w1 = _mm512_maskz_loadu_ps(those, weights + to.columns);
        const __m512 w2 = _mm512_maskz_loadu_ps(those, weights + 2 * to.columns);
        for (int i = 0; i < ROWS; ++i) {
            const __m512 inputs = _mm512_loadu_ps(lines[i] + base), later = _mm512_loadu_ps(lines[i] + base + LANES);
            __m512 sum = _mm512_mul_ps(w0, _mm512_permutexvar_ps(places, inputs));
            sum = _mm512_fmadd_ps(w1, _mm512_permutex2var_ps(inputs, next, later), sum);
            sum = _mm512_fmadd_ps(w2, _mm512_permutex2var_ps(inputs, last, later), sum);
            const __mmask16 above = _mm512_mask_cmp_ps_mask(those, sum, _mm512_set1_ps(threshold), _CMP_GT_OQ);
            _mm_mask_storeu_epi8(out + (long)i * to.columns, those, _mm_maskz_set1_epi8(above, 1));
            any[i] |= above;
            seen.columns[group] |= above;
            if (COUNTING) {
                seen.inner += __builtin_popcount(_mm512_mask_cmp_ps_mask(those, sum, _mm512_set1_ps(high), _CMP_GT_OQ));
                seen.outer += __builtin_popcount(_mm512_mask_cmp_ps_mask(those, sum, _mm512_set1_ps(low), _CMP_GT_OQ));
            }
        }
    }
    for (int i = 0; i < ROWS; ++i) {
        if (!any[i]) continue;
        seen.top = std::min(seen.top, first + i);
        seen.bottom = first + i;
    }
}

// Scales and compares; with COUNTING also counts what exceeds `high` and `low`.
template <bool COUNTING>
void scale(const float* logits, float threshold, float high, float low, const Rectangle& to, uint8_t* mask, int* bounds,
           long* counts) {
    Seen seen;
    seen.top = to.rows;
    int row = 0;
    for (; row + ROWS_AT_ONCE <= to.rows; row += ROWS_AT_ONCE)
        scale_rows<COUNTING, ROWS_AT_ONCE>(logits, threshold, high, low, to, row, mask, seen);
    for (; row < to.rows; ++row) scale_rows<COUNTING, 1>(logits, threshold, high, low, to, row, mask, seen);
    int left = to.columns, right = -1;
    for (int group = 0; group * LANES < to.columns; ++group) {
        if (!seen.columns[group]) continue;
        left = std::min(left, group * LANES + __builtin_ctz(seen.columns[group]));
        right = group * LANES + 31 - __builtin_clz(seen.columns[group]);
    }
    bounds[0] = seen.top, bounds[1] = seen.bottom + 1, bounds[2] = left, bounds[3] = right + 1;
    if (COUNTING) counts[0] = seen.inner, counts[1] = seen.outer;
}

}  // namespace

extern "C" {

// Writes a rectangle of the mask, rows x columns bytes of 0 or 1, and where in it the mask begins and ends: top, bottom,
// left, right; bottom is 0 if there is none. With `counts`, also how many pixels exceed `high` and `low`, which is the
// lowest of the three; without it they are the threshold.
//
// For a row, `row_first` is its first input and `row_weights` the weights of that and the next two; for a column
// likewise, weights being 3 x columns. In each 16 columns from the rectangle's first, inputs lie within 16 of the first's.
// Columns are 65536 at most.
void samovar_threshold(const float* logits, float threshold, float high, float low, const int* row_first,
                       const float* row_weights, int rows, const int* column_first, const float* column_weights,
                       int columns, uint8_t* mask, int* bounds, long* counts) {
    const Rectangle to = {rows, columns, row_first, row_weights, column_first, column_weights};
    if (counts)
        scale<true>(logits, threshold, high, low, to, mask, bounds, counts);
    else
        scale<false>(logits, threshold, threshold, threshold, to, mask, bounds, nullptr);
}
}
