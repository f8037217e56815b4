// What comes before the blocks of SAM's image encoder, and after them: called for some tokens from layers.py.
//
// Tokens follow one another by lines of the picture: rows, or columns. Convolutions see the picture as it lies, so they are
// told how far it is from a token to its neighbours.

#include "encoder_service/fused/layers.h"

namespace {

using namespace samovar;

constexpr int COLOURS = 3;
constexpr int REACH = 3;  // of the last convolution, in tokens

// Where the tokens of a picture are: in something that has `across` from a line to the next, `along` from a token to the
// next in its line.
struct Lines {
    int tokens;  // in a line
    int across, along;

    long operator()(int token) const { return (long)(token / tokens) * across + token % tokens * along; }
};

template <int ISA, int PARTS>
void patches(const float* frame, int side, Lines lines, int first, int count, const void* weight, const float* places,
             int channels, float* tokens) {
    const PanelProducts<ISA> products;
    const Kept<PARTS> pixels(count, COLOURS * TILE * TILE);
    for (int i = 0; i < count; ++i)
        for (int row = 0; row < COLOURS * TILE; ++row) {
            const float* plane = frame + (long)(row / TILE) * side * side + (long)(row % TILE) * side;
            pixels.put(i, row * TILE, _mm512_loadu_ps(plane + lines(first + i)));
        }
    pixels.clear_from(count);
    squares(products, pixels, count, weight, channels, [&](int row, int column, __m512 low, __m512 high) {
        const long to = (long)row * channels + column;
        _mm512_storeu_ps(tokens + to, _mm512_add_ps(low, _mm512_loadu_ps(places + to)));
        _mm512_storeu_ps(tokens + to + 16, _mm512_add_ps(high, _mm512_loadu_ps(places + to + 16)));
    });
}

// A product without a bias, and its layer norm.
template <class P, int PARTS, class Put>
void normed_product(const P& products, const Left<PARTS>& left, int count, const void* weight, int columns,
                    const float* norm_weight, const float* norm_bias, float epsilon, Put put) {
    const Aligned<float> product((long)count * columns);
    squares(products, left, count, weight, columns, [&](int row, int column, __m512 low, __m512 high) {
        float* to = product + (long)row * columns + column;
        _mm512_store_ps(to, low);
        _mm512_store_ps(to + 16, high);
    });
    norm(product, count, columns, norm_weight, norm_bias, epsilon, put);
}

template <int ISA, int PARTS>
void narrow(const float* tokens, int count, int channels, const void* weight, int columns, const float* norm_weight,
            const float* norm_bias, float epsilon, Lines lines, int first, void* out) {
    const PanelProducts<ISA> products;
    const Kept<PARTS> left(count, channels);
    for (int row = 0; row < count; ++row)
        for (int column = 0; column < channels; column += TILE)
            left.put(row, column, _mm512_loadu_ps(tokens + (long)row * channels + column));
    left.clear_from(count);
    normed_product(products, left, count, weight, columns, norm_weight, norm_bias, epsilon,
                   [&](int row, int column, __m512 values) {
                       put((Number<PARTS>*)out + lines(first + row) * columns + column, values);
                   });
}

// `down` is how far it is from a token to the one below it, `right` to the one on its right, in tokens of `in`.
template <int ISA, int PARTS>
void convolve(const void* in, int channels, Lines lines, int first, int count, int down, int right,
              const void* weight, int columns, const float* norm_weight, const float* norm_bias, float epsilon,
              float* planes, long plane) {
    const PanelProducts<ISA> products;
    const Kept<PARTS> left(count, REACH * REACH * channels);
    for (int i = 0; i < count; ++i)
        for (int row = 0; row < REACH; ++row)
            for (int column = 0; column < REACH; ++column) {
                const long token = lines(first + i) + (row - REACH / 2) * down + (column - REACH / 2) * right;
                const auto* from = (const Number<PARTS>*)in + token * channels;
                for (int channel = 0; channel < channels; channel += TILE)
                    left.put(i, (row * REACH + column) * channels + channel, get(from + channel));
            }
    left.clear_from(count);
    const Aligned<float> normed((long)round_up(count, TILE) * columns);
    normed_product(products, left, count, weight, columns, norm_weight, norm_bias, epsilon,
                   [&](int row, int column, __m512 values) { _mm512_store_ps(normed + row * columns + column, values); });
    for (int row = 0; row < count; row += TILE) {
        const __mmask16 some = count - row >= TILE ? 0xffff : (1u << (count - row)) - 1;
        for (int column = 0; column < columns; column += TILE) {
            __m512i part[TILE];
            for (int i = 0; i < TILE; ++i) part[i] = _mm512_load_si512(normed + (row + i) * columns + column);
            transpose_16x16(part);
            for (int i = 0; i < TILE; ++i)
                _mm512_mask_storeu_epi32(planes + (column + i) * plane + first + row, some, part[i]);
        }
    }
}

}  // namespace

extern "C" {

// The first layer, for tokens from `first` on: squares of 16 x 16 pixels of a frame, 3 x side x side float32, to count x
// channels float32. Lines are told in pixels of a plane; `places`, count x channels, is added.
void samovar_patches(int isa, int parts, const float* frame, int side, int line, int across, int along, int first,
                     int count, const void* weight, const float* places, int channels, float* tokens) {
    CHOSEN(patches)(frame, side, {line, across, along}, first, count, weight, places, channels, tokens);
}

// The convolution of 1 x 1 after the blocks, and its norm: tokens, count x channels float32, from `first` on, to where
// their lines lie, told in tokens, in `out`: of `columns` bfloat16 each; whole or in two parts, float32.
void samovar_narrow(int isa, int parts, const float* tokens, int count, int channels, const void* weight,
                    int columns, const float* norm_weight, const float* norm_bias, float epsilon, int line, int across,
                    int along, int first, void* out) {
    CHOSEN(narrow)(tokens, count, channels, weight, columns, norm_weight, norm_bias, epsilon, {line, across, along}, first,
                   out);
}

// The convolution of 3 x 3 on what that left, around which there is a border of zeros, and its norm: `columns` planes,
// of which each has the tokens as they follow one another.
void samovar_convolve(int isa, int parts, const void* in, int channels, int line, int across, int along, int first,
                      int count, int down, int right, const void* weight, int columns, const float* norm_weight,
                      const float* norm_bias, float epsilon, float* planes, long plane) {
    CHOSEN(convolve)(in, channels, {line, across, along}, first, count, down, right, weight, columns, norm_weight,
                     norm_bias, epsilon, planes, plane);
}
}
