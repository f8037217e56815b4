// What SAM's image encoder does with each token by itself. The residual stream and the norms are float32. What goes into
// products is bfloat16, or, WHOLE, float32, or, in two PARTS, the sum of two numbers in bfloat16, the second of which is
// what the first leaves over: 16 bits. A product of two sums is then three products; the fourth, of the second parts, is
// 2^-16 of it and left out. Source of the latter: Henry, Tang, Heinecke, "Leveraging the bfloat16 artificial intelligence datatype for
// higher-precision computations", ARITH 2019.
//
// Tokens are rows of a matrix. Left operands are in panels, see sam/compiled/panels.h, the second parts behind the first;
// so are the parts of right operands.

#pragma once

#include <type_traits>

#include "encoder_service/fused/memory.h"
#include "sam/compiled/panels.h"

namespace samovar {

constexpr int WHOLE = 0;  // in place of a number of parts

// What operands consist of.
template <int PARTS>
using Operand = std::conditional_t<PARTS == WHOLE, float, bf16>;

// What a layer leaves for another one, if it is no left operand.
template <int PARTS>
using Number = std::conditional_t<PARTS == 1, bf16, float>;

inline void put(bf16* to, __m512 values) { store_bf16(to, values); }
inline void put(float* to, __m512 values) { _mm512_storeu_ps(to, values); }
inline __m512 get(const bf16* from) { return load_bf16(from); }
inline __m512 get(const float* from) { return _mm512_loadu_ps(from); }

template <int PARTS>
struct Left {
    Operand<PARTS>* numbers;
    int rows, k;  // rows: a multiple of 32

    Operand<PARTS>* place(int row, int column) const { return panel_place(numbers, k, row, column); }

    long apart() const { return (long)rows * k; }

    void put(int row, int column, __m512 values) const {
        auto* to = place(row, column);
        samovar::put(to, values);
        if constexpr (PARTS == 2) store_bf16(to + apart(), _mm512_sub_ps(values, load_bf16(to)));
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
    Aligned<Operand<PARTS>> memory;

    Kept(int count, int k)
        : Left<PARTS>{nullptr, round_up(count, PANEL), k}, memory((long)std::max(PARTS, 1) * this->rows * k) {
        this->numbers = memory;
    }
};

// The layer norm of some tokens: calls `put(token, channel, a register)`.
template <class Put>
void norm(const float* tokens, int count, int channels, const float* weight, const float* bias, float epsilon, Put put) {
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
            put(token, i, _mm512_fmadd_ps(normed, _mm512_loadu_ps(weight + i), _mm512_loadu_ps(bias + i)));
        }
    }
}

// The same as a left operand.
template <int PARTS>
void norm_into(const Left<PARTS>& out, const float* tokens, int count, int channels, const float* weight,
               const float* bias, float epsilon) {
    norm(tokens, count, channels, weight, bias, epsilon,
         [&](int token, int channel, __m512 values) { out.put(token, channel, values); });
    out.clear_from(count);
}

// Products come 32 x 32 at a time, for which `finish(row, column, two registers)` is called.
template <class P, int PARTS, class Finish>
void squares(const P& products, const Left<PARTS>& left, int count, const void* packed, int columns, Finish finish) {
    alignas(64) float square[PANEL * PANEL];
    const auto* right = static_cast<const Operand<PARTS>*>(packed);
    const int k = left.k;
    for (int column = 0; column < columns; column += PANEL)
        for (int first = 0; first < count; first += PANEL) {
            const Operand<PARTS>*panel = left.place(first, 0), *some = right + (long)column * k;
            products.template multiply<false>(panel, PANEL, k, some, 2, square, PANEL);
            if constexpr (PARTS == 2) {
                products.template multiply<true>(panel, PANEL, k, some + (long)k * columns, 2, square, PANEL);
                products.template multiply<true>(panel + left.apart(), PANEL, k, some, 2, square, PANEL);
            }
            for (int i = 0; i < std::min(PANEL, count - first); ++i)
                finish(first + i, column, _mm512_load_ps(square + i * PANEL), _mm512_load_ps(square + i * PANEL + 16));
        }
}

// The function for an instruction set and a number of parts.
#define CHOSEN(function)                                                     \
    (parts == WHOLE ? function<AVX512, WHOLE>                                \
     : parts == 1   ? isa == AMX ? function<AMX, 1> : function<AVX512, 1>    \
                    : isa == AMX ? function<AMX, 2> : function<AVX512, 2>)

}  // namespace samovar
