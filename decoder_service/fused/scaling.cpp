// From 256 x 256 logits to a mask in pixels of the picture: the two resizes of resizing.py composed, three inputs an
// output on each axis, and compared with the threshold while they are in registers.
//
// A row of inputs is first made as wide as the rectangle, for which numbers change their places in registers; there are fewer
// of them than rows of outputs, each of which is then a mean of three such lines.

#include <memory>

#include "numbers.h"

namespace {

using namespace samovar;

constexpr int SIDE = 256;
constexpr int LANES = 16;
constexpr int BLOCK = 64;  // columns that are compared at once
constexpr int PARTS = BLOCK / LANES;
constexpr int TAPS = 3;
constexpr int ROWS_AT_ONCE = 16;

struct Rectangle {
    int rows, columns;
    const int* row_first;
    const float* row_weights;
    const int* column_first;
    const float* column_weights;

    int blocks() const { return (columns + BLOCK - 1) / BLOCK; }
};

struct Thresholds {
    float mask, high, low;
};

// The lines that the next rows are made from: of three neighbouring inputs, kept until others take their places.
class Lines {
   public:
    Lines(const float* logits, const Rectangle& to, float low)
        : logits(logits), to(to), low(low), width(to.blocks() * BLOCK),
          values(static_cast<float*>(std::aligned_alloc(64, sizeof(float) * TAPS * width))),
          hot(new uint8_t[TAPS * to.blocks()]) {}

    // Makes sure that three lines from an input on are there; what has no weight may lie below the last.
    void reach(int first) {
        for (int row = first; row < first + TAPS; ++row)
            if (made[row % TAPS] != row) make(row);
    }

    const float* line(int row) const { return values.get() + (long)(row % TAPS) * width; }

    // Whether a block of any of three lines has what exceeds `low`. A mean exceeds nothing that none of its inputs does.
    bool is_hot(int block) const {
        const uint8_t* of = hot.get() + block;
        return of[0] | of[to.blocks()] | of[2 * to.blocks()];
    }

   private:
    struct Free {
        void operator()(float* memory) const { std::free(memory); }
    };

    void make(int row) {
        // Read beyond its end where nothing has a weight.
        alignas(64) float inputs[SIDE + 2 * LANES] = {};
        std::memcpy(inputs, logits + std::min(row, SIDE - 1) * SIDE, sizeof(float) * SIDE);
        float* out = values.get() + (long)(row % TAPS) * width;
        uint8_t* warm = hot.get() + (row % TAPS) * to.blocks();
        const __m512i one = _mm512_set1_epi32(1);
        const __m512 floor = _mm512_set1_ps(low);
        for (int block = 0; block < to.blocks(); ++block) {
            unsigned any = 0;
            for (int column = block * BLOCK; column < (block + 1) * BLOCK; column += LANES) {
                const int count = std::clamp(to.columns - column, 0, LANES);
                const __mmask16 those = (__mmask16)((1u << count) - 1);
                const int base = count ? to.column_first[column] : 0;
                const __m512i places = _mm512_sub_epi32(_mm512_maskz_loadu_epi32(those, to.column_first + column),
                                                        _mm512_set1_epi32(base));
                const __m512i next = _mm512_add_epi32(places, one), last = _mm512_add_epi32(next, one);
                const float* weights = to.column_weights + column;
                const __m512 some = _mm512_loadu_ps(inputs + base), later = _mm512_loadu_ps(inputs + base + LANES);
                __m512 sum = _mm512_mul_ps(_mm512_maskz_loadu_ps(those, weights), _mm512_permutexvar_ps(places, some));
                sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(those, weights + to.columns),
                                      _mm512_permutex2var_ps(some, next, later), sum);
                sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(those, weights + 2 * to.columns),
                                      _mm512_permutex2var_ps(some, last, later), sum);
                _mm512_store_ps(out + column, sum);
                any |= _mm512_mask_cmp_ps_mask(those, sum, floor, _CMP_GT_OQ);
            }
            warm[block] = any != 0;
        }
        made[row % TAPS] = row;
    }

    const float* logits;
    const Rectangle& to;
    const float low;
    const long width;
    const std::unique_ptr<float, Free> values;
    const std::unique_ptr<uint8_t[]> hot;
    int made[TAPS] = {-1, -1, -1};
};

// Where the mask lies, and how many pixels exceed the other two thresholds.
struct Seen {
    std::unique_ptr<uint64_t[]> columns;
    int top, bottom = -1;
    long inner = 0, outer = 0;

    explicit Seen(const Rectangle& to) : columns(new uint64_t[to.blocks()]()), top(to.rows) {}
};

inline uint64_t above(const __m512 (&values)[PARTS], float threshold) {
    const __m512 than = _mm512_set1_ps(threshold);
    uint64_t found = 0;
    for (int i = 0; i < PARTS; ++i)
        found |= (uint64_t)_mm512_cmp_ps_mask(values[i], than, _CMP_GT_OQ) << (LANES * i);
    return found;
}

// Scales and compares rows from `first` up to `end`, which are made from the same three lines.
template <bool COUNTING>
void scale_rows(const Lines& lines, const Thresholds& than, const Rectangle& to, int first, int end, uint8_t* mask,
                Seen& seen) {
    const float* line[TAPS];
    for (int i = 0; i < TAPS; ++i) line[i] = lines.line(to.row_first[first] + i);
    uint64_t any[ROWS_AT_ONCE] = {};
    for (int block = 0; block < to.blocks(); ++block) {
        const int column = block * BLOCK, count = std::min(BLOCK, to.columns - column);
        const __mmask64 those = ~0ull >> (BLOCK - count);
        uint8_t* out = mask + (long)first * to.columns + column;
        if (!lines.is_hot(block)) {
            for (int row = first; row < end; ++row, out += to.columns)
                _mm512_mask_storeu_epi8(out, those, _mm512_setzero_si512());
            continue;
        }
        __m512 inputs[TAPS][PARTS];
        for (int i = 0; i < TAPS; ++i)
            for (int part = 0; part < PARTS; ++part) inputs[i][part] = _mm512_load_ps(line[i] + column + part * LANES);
        uint64_t all = 0;
        for (int row = first; row < end; ++row, out += to.columns) {
            const float* weights = to.row_weights + TAPS * row;
            __m512 values[PARTS];
            for (int part = 0; part < PARTS; ++part) {
                __m512 sum = _mm512_mul_ps(_mm512_set1_ps(weights[0]), inputs[0][part]);
                sum = _mm512_fmadd_ps(_mm512_set1_ps(weights[1]), inputs[1][part], sum);
                values[part] = _mm512_fmadd_ps(_mm512_set1_ps(weights[2]), inputs[2][part], sum);
            }
            const uint64_t found = above(values, than.mask) & those;
            _mm512_mask_storeu_epi8(out, those, _mm512_maskz_set1_epi8(found, 1));
            any[row - first] |= found;
            all |= found;
            if (COUNTING) {
                seen.inner += __builtin_popcountll(above(values, than.high) & those);
                seen.outer += __builtin_popcountll(above(values, than.low) & those);
            }
        }
        seen.columns[block] |= all;
    }
    for (int row = first; row < end; ++row) {
        if (!any[row - first]) continue;
        seen.top = std::min(seen.top, row);
        seen.bottom = row;
    }
}

// Scales and compares; with COUNTING also counts what exceeds `high` and `low`.
template <bool COUNTING>
void scale(const float* logits, const Thresholds& than, const Rectangle& to, uint8_t* mask, int* bounds, long* counts) {
    Lines lines(logits, to, than.low);
    Seen seen(to);
    for (int first = 0, end; first < to.rows; first = end) {
        for (end = first + 1; end < to.rows && end < first + ROWS_AT_ONCE && to.row_first[end] == to.row_first[first];) ++end;
        lines.reach(to.row_first[first]);
        scale_rows<COUNTING>(lines, than, to, first, end, mask, seen);
    }
    int left = to.columns, right = -1;
    for (int block = 0; block < to.blocks(); ++block) {
        if (!seen.columns[block]) continue;
        left = std::min(left, block * BLOCK + __builtin_ctzll(seen.columns[block]));
        right = block * BLOCK + 63 - __builtin_clzll(seen.columns[block]);
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
void samovar_threshold(const float* logits, float threshold, float high, float low, const int* row_first,
                       const float* row_weights, int rows, const int* column_first, const float* column_weights,
                       int columns, uint8_t* mask, int* bounds, long* counts) {
    const Rectangle to = {rows, columns, row_first, row_weights, column_first, column_weights};
    if (counts)
        scale<true>(logits, {threshold, high, low}, to, mask, bounds, counts);
    else
        scale<false>(logits, {threshold, threshold, threshold}, to, mask, bounds, nullptr);
}
}
