// The layers of SAM's image encoder that work on each token by itself, in bfloat16: called for some tokens from
// image_encoder.py, which says what is computed. The residual stream and the norms are float32.
//
// Tokens are rows of a matrix. Left operands are in panels, see sam/compiled/panels.h.

#include "encoder_service/fused/memory.h"
#include "sam/compiled/panels.h"

namespace {

using namespace samovar;

// The layer norm of some tokens, in panels; rows up to a multiple of 32 are zero.
void norm(const float* tokens, int count, int channels, const float* weight, const float* bias, float epsilon,
          bf16* out) {
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
            store_bf16(panel_place(out, channels, token, i),
                       _mm512_fmadd_ps(normed, _mm512_loadu_ps(weight + i), _mm512_loadu_ps(bias + i)));
        }
    }
    for (int row = count; row < round_up(count, PANEL); ++row)
        for (int i = 0; i < channels; i += DEPTH) std::memset(panel_place(out, channels, row, i), 0, sizeof(bf16) * DEPTH);
}

// Products come 32 x 32 at a time, for which `finish(row, column, two registers)` is called.
template <class P, class Finish>
void squares(const P& products, const bf16* panels, int rows, int k, const bf16* right, int columns, Finish finish) {
    alignas(64) float square[PANEL * PANEL];
    for (int column = 0; column < columns; column += PANEL)
        for (int first = 0; first < rows; first += PANEL) {
            products.template multiply<false>(panels + (long)first * k, PANEL, k, right + (long)column * k, 2, square, PANEL);
            for (int i = 0; i < std::min(PANEL, rows - first); ++i)
                finish(first + i, column, _mm512_load_ps(square + i * PANEL), _mm512_load_ps(square + i * PANEL + 16));
        }
}

template <int ISA>
void project(const float* tokens, int count, int channels, const float* norm_weight, const float* norm_bias,
             float epsilon, const bf16* weight, const float* bias, int columns, bf16* out) {
    const PanelProducts<ISA> products;
    const int rows = round_up(count, 32);
    Aligned<bf16> normed((long)rows * channels);
    norm(tokens, count, channels, norm_weight, norm_bias, epsilon, normed);
    squares(products, normed, count, channels, weight, columns, [&](int row, int column, __m512 low, __m512 high) {
        bf16* to = out + (long)row * columns + column;
        store_bf16(to, _mm512_add_ps(low, _mm512_loadu_ps(bias + column)));
        store_bf16(to + 16, _mm512_add_ps(high, _mm512_loadu_ps(bias + column + 16)));
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

template <int ISA>
void add_attended(const bf16* attended, int count, int channels, const bf16* weight, const float* bias, float* tokens) {
    const PanelProducts<ISA> products;
    squares(products, attended, count, channels, weight, channels, Adding{tokens, channels, bias});
}

template <int ISA>
void add_perceptron(float* tokens, int count, int channels, const float* norm_weight, const float* norm_bias,
                    float epsilon, const bf16* first, const float* first_bias, int hidden, const bf16* second,
                    const float* second_bias) {
    const PanelProducts<ISA> products;
    const long rows = round_up(count, PANEL);
    Aligned<bf16> normed(rows * channels), middle(rows * hidden);
    norm(tokens, count, channels, norm_weight, norm_bias, epsilon, normed);
    if (rows != count) std::memset(middle, 0, sizeof(bf16) * rows * hidden);
    squares(products, normed, count, channels, first, hidden, [&](int row, int column, __m512 low, __m512 high) {
        bf16* to = panel_place<bf16>(middle, hidden, row, column);
        store_bf16(to, gelu(_mm512_add_ps(low, _mm512_loadu_ps(first_bias + column))));
        store_bf16(to + 16, gelu(_mm512_add_ps(high, _mm512_loadu_ps(first_bias + column + 16))));
    });
    squares(products, middle, count, hidden, second, channels, Adding{tokens, channels, second_bias});
}

}  // namespace

extern "C" {

// A layer norm and a linear layer of some tokens: count x channels float32 to count x columns bfloat16.
void samovar_project(int isa, const float* tokens, int count, int channels, const float* norm_weight,
                     const float* norm_bias, float epsilon, const uint16_t* weight, const float* bias, int columns,
                     uint16_t* out) {
    (isa == AMX ? project<AMX> : project<AVX512>)(tokens, count, channels, norm_weight, norm_bias, epsilon, weight,
                                                  bias, columns, out);
}

// Adds to some tokens what a linear layer makes of what they attended to, count x channels bfloat16.
void samovar_add_attended(int isa, const uint16_t* attended, int count, int channels, const uint16_t* weight,
                          const float* bias, float* tokens) {
    (isa == AMX ? add_attended<AMX> : add_attended<AVX512>)(attended, count, channels, weight, bias, tokens);
}

// Adds to some tokens what a layer norm and a perceptron with one hidden layer and GELU make of them.
void samovar_add_perceptron(int isa, float* tokens, int count, int channels, const float* norm_weight,
                            const float* norm_bias, float epsilon, const uint16_t* first, const float* first_bias,
                            int hidden, const uint16_t* second, const float* second_bias) {
    (isa == AMX ? add_perceptron<AMX> : add_perceptron<AVX512>)(tokens, count, channels, norm_weight, norm_bias,
                                                                epsilon, first, first_bias, hidden,
                                                                second, second_bias);
}
}
