// What a block of SAM's image encoder does beside attending: called for some tokens from layers.py.

#include "encoder_service/fused/layers.h"

namespace {

using namespace samovar;

template <int ISA, int PARTS>
void project(const float* tokens, int count, int channels, const float* norm_weight, const float* norm_bias,
             float epsilon, const void* weight, const float* bias, int columns, void* out) {
    const PanelProducts<ISA> products;
    const Kept<PARTS> normed(count, channels);
    norm_into(normed, tokens, count, channels, norm_weight, norm_bias, epsilon);
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
void add_attended(const void* attended, int count, int channels, const void* weight, const float* bias, float* tokens) {
    const PanelProducts<ISA> products;
    const Adding adding{tokens, channels, bias};
    if constexpr (PARTS != 2) {
        const Left<PARTS> left{(Operand<PARTS>*)attended, round_up(count, PANEL), channels};
        squares(products, left, count, weight, channels, adding);
    } else {
        const Kept<PARTS> left(count, channels);
        for (int row = 0; row < count; ++row)
            for (int column = 0; column < channels; column += TILE)
                left.put(row, column, _mm512_loadu_ps(panel_place((const float*)attended, channels, row, column)));
        left.clear_from(count);
        squares(products, left, count, weight, channels, adding);
    }
}

template <int ISA, int PARTS>
void add_perceptron(float* tokens, int count, int channels, const float* norm_weight, const float* norm_bias,
                    float epsilon, const void* first, const float* first_bias, int hidden, const void* second,
                    const float* second_bias) {
    const PanelProducts<ISA> products;
    const Kept<PARTS> normed(count, channels), middle(count, hidden);
    norm_into(normed, tokens, count, channels, norm_weight, norm_bias, epsilon);
    middle.clear_from(count);
    squares(products, normed, count, first, hidden, [&](int row, int column, __m512 low, __m512 high) {
        middle.put(row, column, gelu(_mm512_add_ps(low, _mm512_loadu_ps(first_bias + column))));
        middle.put(row, column + 16, gelu(_mm512_add_ps(high, _mm512_loadu_ps(first_bias + column + 16))));
    });
    squares(products, middle, count, second, channels, Adding{tokens, channels, second_bias});
}

}  // namespace

extern "C" {

// A layer norm and a linear layer of some tokens: count x channels float32 to count x columns bfloat16; whole or in
// two parts, float32.
void samovar_project(int isa, int parts, const float* tokens, int count, int channels, const float* norm_weight,
                     const float* norm_bias, float epsilon, const void* weight, const float* bias, int columns,
                     void* out) {
    CHOSEN(project)(tokens, count, channels, norm_weight, norm_bias, epsilon, weight, bias, columns, out);
}

// Adds to some tokens what a linear layer makes of what they attended to, count x channels in panels: bfloat16; whole or in
// two parts, float32.
void samovar_add_attended(int isa, int parts, const void* attended, int count, int channels, const void* weight,
                          const float* bias, float* tokens) {
    CHOSEN(add_attended)(attended, count, channels, weight, bias, tokens);
}

// Adds to some tokens what a layer norm and a perceptron with one hidden layer and GELU make of them.
void samovar_add_perceptron(int isa, int parts, float* tokens, int count, int channels, const float* norm_weight,
                            const float* norm_bias, float epsilon, const void* first, const float* first_bias,
                            int hidden, const void* second, const float* second_bias) {
    CHOSEN(add_perceptron)(tokens, count, channels, norm_weight, norm_bias, epsilon, first, first_bias, hidden, second,
                           second_bias);
}
}
