// The layers of SAM's image encoder that work on each token by itself: called for some tokens from image_encoder.py, which
// says what is computed. The residual stream and the norms are float32. What goes into products is bfloat16, or, in two
// PARTS, the sum of two such numbers, the second of which is what the first leaves over: 16 bits. A product of two sums is
// then three products; the fourth, of the second parts, is 2^-16 of it and left out.
// Source of the latter: Henry, Tang, Heinecke, "Leveraging the bfloat16 artificial intelligence datatype for
// higher-precision computations", ARITH 2019.
//
// Tokens are rows of a matrix. Left operands are in panels, see sam/compiled/panels.h, the second parts behind the first;
// so are the parts of right operands.

#include <type_traits>

#include "encoder_service/fused/memory.h"
#include "sam/compiled/panels.h"

namespace {

using namespace samovar;

template <int PARTS>
struct Left {
    bf16* numbers;
    int rows, k;  // rows: a multiple of 32

    bf16* place(int row, int column) const { return panel_place(numbers, k, row, column); }

    long apart() const { return (long)rows * k; }

    void put(int row, int column, __m512 values) const {
        bf16* to = place(row, column);
        const __m256i first = (__m256i)_mm512_cvtneps_pbh(values);
        _mm256_storeu_si256((__m256i*)to, first);
        if (PARTS == 2) store_bf16(to + apart(), _mm512_sub_ps(values, widen(first)));
    }

    // What no token fills must be finite, though nobody looks at what comes of it.
    void clear_from(int row) const {
        for (; row < rows; ++row)
            for (int column = 0; column < k; column += TILE) put(row, column, _mm512_setzero_ps());
    }
};

// A left operand with memory of its own.
template <int PARTS>
struct Kept : Left<PARTS> {
    Aligned<bf16> memory;

    Kept(int count, int k) : Left<PARTS>{nullptr, round_up(count, PANEL), k}, memory((long)PARTS * this->rows * k) {
        this->numbers = memory;
    }
};

// What a linear layer leaves for attention.
inline void put(bf16* to, __m512 values) { store_bf16(to, values); }
inline void put(float* to, __m512 values) { _mm512_storeu_ps(to, values); }

template <int PARTS>
using Number = std::conditional_t<PARTS == 1, bf16, float>;

// The layer norm of some tokens.
template <int PARTS>
void norm(const float* tokens, int count, int channels, const float* weight, const float* bias, float epsilon,
          const Left<PARTS>& out) {
    for (int token = 0; token < count; ++token) {
        const float* from = tokens + (long)token * channels;
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
            out.put(token, i, _mm512_fmadd_ps(normed, _mm512_loadu_ps(weight + i), _mm512_loadu_ps(bias + i)));
        }
    }
    out.clear_from(count);
}

// Products come 32 x 32 at a time, for which `finish(row, column, two registers)` is called.
template <class P, int PARTS, class Finish>
void squares(const P& products, const Left<PARTS>& left, int count, const bf16* right, int columns, Finish finish) {
    alignas(64) float square[PANEL * PANEL];
    const int k = left.k;
    for (int column = 0; column < columns; column += PANEL)
        for (int first = 0; first < count; first += PANEL) {
            const bf16 *panel = left.place(first, 0), *some = right + (long)column * k;
            products.template multiply<false>(panel, PANEL, k, some, 2, square, PANEL);
            if (PARTS == 2) {
                products.template multiply<true>(panel, PANEL, k, some + (long)k * columns, 2, square, PANEL);
                products.template multiply<true>(panel + left.apart(), PANEL, k, some, 2, square, PANEL);
            }
            for (int i = 0; i < std::min(PANEL, count - first); ++i)
                finish(first + i, column, _mm512_load_ps(square + i * PANEL), _mm512_load_ps(square + i * PANEL + 16));
        }
}

template <int ISA, int PARTS>
void project(const float* tokens, int count, int channels, const float* norm_weight, const float* norm_bias,
             float epsilon, const bf16* weight, const float* bias, int columns, void* out) {
    const PanelProducts<ISA> products;
    const Kept<PARTS> normed(count, channels);
    norm(tokens, count, channels, norm_weight, norm_bias, epsilon, normed);
    squares(products, normed, count, weight, columns, [&](int row, int column, __m512 low, __m512 high) {
        auto* to = (Number<PARTS>*)out + (long)row * columns + column;
        put(to, _mm512_add_ps(low, _mm512_loadu_ps(bias + column)));
        put(to + 16, _mm512_add_ps(high, _mm512_loadu_ps(bias + column + 16)));
    });
}

// Adds a product and a bias to tokens.
struct Adding {
    float* tokens;
    int channels;
    const float* bias;

    void operator()(int row, int column, __m512 low, __m512 high) const {
        float* to = tokens + (long)row * channels + column;
        low = _mm512_add_ps(low, _mm512_loadu_ps(bias + column));
        high = _mm512_add_ps(high, _mm512_loadu_ps(bias + column + 16));
        _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), low));
        _mm512_storeu_ps(to + 16, _mm512_add_ps(_mm512_loadu_ps(to + 16), high));
    }
};

template <int ISA, int PARTS>
void add_attended(const void* attended, int count, int channels, const bf16* weight, const float* bias, float* tokens) {
    const PanelProducts<ISA> products;
    const Adding adding{tokens, channels, bias};
    if constexpr (PARTS == 1) {
        const Left<1> left{(bf16*)attended, round_up(count, PANEL), channels};
        squares(products, left, count, weight, channels, adding);
    } else {
        const Kept<PARTS> left(count, channels);
        for (int row = 0; row < count; ++row)
            for (int column = 0; column < channels; column += TILE)
                left.put(row, column, _mm512_loadu_ps((const float*)attended + (long)row * channels + column));
        left.clear_from(count);
        squares(products, left, count, weight, channels, adding);
    }
}

template <int ISA, int PARTS>
void add_perceptron(float* tokens, int count, int channels, const float* norm_weight, const float* norm_bias,
                    float epsilon, const bf16* first, const float* first_bias, int hidden, const bf16* second,
                    const float* second_bias) {
    const PanelProducts<ISA> products;
    const Kept<PARTS> normed(count, channels), middle(count, hidden);
    norm(tokens, count, channels, norm_weight, norm_bias, epsilon, normed);
    middle.clear_from(count);
    squares(products, normed, count, first, hidden, [&](int row, int column, __m512 low, __m512 high) {
        middle.put(row, column, gelu(_mm512_add_ps(low, _mm512_loadu_ps(first_bias + column))));
        middle.put(row, column + 16, gelu(_mm512_add_ps(high, _mm512_loadu_ps(first_bias + column + 16))));
    });
    squares(products, middle, count, second, channels, Adding{tokens, channels, second_bias});
}

// The function for an instruction set and a number of parts.
#define CHOSEN(function)                                                     \
    (parts == 1 ? isa == AMX ? function<AMX, 1> : function<AVX512, 1>        \
                : isa == AMX ? function<AMX, 2> : function<AVX512, 2>)

}  // namespace

extern "C" {

// A layer norm and a linear layer of some tokens: count x channels float32 to count x columns bfloat16; in two parts,
// float32.
void samovar_project(int isa, int parts, const float* tokens, int count, int channels, const float* norm_weight,
                     const float* norm_bias, float epsilon, const uint16_t* weight, const float* bias, int columns,
                     void* out) {
    CHOSEN(project)(tokens, count, channels, norm_weight, norm_bias, epsilon, weight, bias, columns, out);
}

// Adds to some tokens what a linear layer makes of what they attended to, count x channels: bfloat16 in panels; in two
// parts, float32 in rows.
void samovar_add_attended(int isa, int parts, const void* attended, int count, int channels, const uint16_t* weight,
                          const float* bias, float* tokens) {
    CHOSEN(add_attended)(attended, count, channels, weight, bias, tokens);
}

// Adds to some tokens what a layer norm and a perceptron with one hidden layer and GELU make of them.
void samovar_add_perceptron(int isa, int parts, float* tokens, int count, int channels, const float* norm_weight,
                            const float* norm_bias, float epsilon, const uint16_t* first, const float* first_bias,
                            int hidden, const uint16_t* second, const float* second_bias) {
    CHOSEN(add_perceptron)(tokens, count, channels, norm_weight, norm_bias, epsilon, first, first_bias, hidden, second,
                           second_bias);
}
}
