// The image's side of SAM's mask decoder in bfloat16, fused so that what belongs to a block of positions stays in the
// cache until it is done with. Called from mask_decoder.py, which says what is computed; the arithmetic is that of
// token_attention.py and upscaling.py.
//
// Matrices are row-major. "bfloat16" arrays are uint16_t here. What belongs to tokens comes and goes as 8 heads x tokens
// x 256 channels, with a stride between heads. In here a row is token * 8 + head, with tokens padded to a multiple of 4:
// so a softmax over tokens adds up lanes of registers that hold two tokens with 8 heads each.
//
#include "sam/compiled/products.h"
#include "sides.h"

namespace {

using namespace samovar;

constexpr int MAX_ROWS = MAX_TOKENS * HEADS;
constexpr int HALF = BLOCK / 2;  // positions whose 256 channels in float32 leave room in the first cache
constexpr int MIDDLE = 64;       // channels after the first transposed convolution
constexpr float NORM_EPSILON = 1e-5f;
constexpr float MIDDLE_EPSILON = 1e-6f;

// Fetches a position's channels, while others are computed: images come from beyond the second cache.
inline void fetch(const bf16* channels) {
    for (int i = 0; i < CHANNELS; i += 32) _mm_prefetch(reinterpret_cast<const char*>(channels + i), _MM_HINT_T1);
}

// What belongs to the tokens of one prompt: heads x tokens x channels.
struct Tokens {
    const float* values;
    long head_stride;
    int count;

    int rows() const { return (count + 3) / 4 * 4 * HEADS; }

    // The channels of a row; of those that pad, zeros.
    const float* row(int row) const {
        alignas(64) static const float none[CHANNELS] = {};
        const int token = row / HEADS;
        return token < count ? values + (row % HEADS) * head_stride + (long)token * CHANNELS : none;
    }
};

// Packs the transpose of all rows as a right operand with k = channel and a column for each row.
void pack_rows(const Tokens& tokens, bf16* packed) {
    const int steps = CHANNELS / DEPTH;
    for (int tile = 0; tile < tokens.rows() / TILE; ++tile)
        for (int step = 0; step < steps; ++step) {
            __m512i part[16];
            for (int n = 0; n < 16; ++n) {
                const float* from = tokens.row(tile * TILE + n) + step * DEPTH;
                part[n] = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + 16), _mm512_loadu_ps(from));
            }
            transpose_16x16(part);
            bf16* to = packed + (tile * steps + step) * TILE_SIZE;
            for (int pair = 0; pair < 16; ++pair) _mm512_storeu_si512(to + pair * 32, part[pair]);
        }
}

// Packs a block of positions (64 x 256) as a right operand with k = position.
void pack_positions(const bf16* block, bf16* packed) {
    alignas(64) static const uint16_t lows[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                  8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    alignas(64) static const uint16_t highs[32] = {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
                                                   24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
    const __m512i low = _mm512_load_si512(lows), high = _mm512_load_si512(highs);
    const int steps = BLOCK / DEPTH;
    for (int pair = 0; pair < BLOCK / 2; ++pair) {
        const bf16* even = block + 2 * pair * CHANNELS;
        bf16* to = packed + (pair / 16) * TILE_SIZE + (pair % 16) * 32;
        for (int column = 0; column < CHANNELS; column += 32) {
            const __m512i a = _mm512_loadu_si512(even + column), b = _mm512_loadu_si512(even + CHANNELS + column);
            bf16* tile = to + (column / TILE) * steps * TILE_SIZE;
            _mm512_storeu_si512(tile, _mm512_permutex2var_epi16(a, low, b));
            _mm512_storeu_si512(tile + steps * TILE_SIZE, _mm512_permutex2var_epi16(a, high, b));
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Attention of the tokens to the image, over blocks

// Beyond its maximum so far a score may grow by this before sums are scaled anew: e^8 is far from any limit.
constexpr float HEADROOM = 8.0f;

struct Look {
    const int rows;
    alignas(64) bf16 query[MAX_ROWS * CHANNELS];      // packed
    alignas(64) float scores[BLOCK * MAX_ROWS];       // position x row
    alignas(64) bf16 weights[MAX_ROWS * BLOCK];       // row x position
    alignas(64) bf16 values[BLOCK * CHANNELS];        // packed
    alignas(64) float sums[MAX_ROWS * CHANNELS];      // row x channel
    alignas(64) float shares[MAX_ROWS];
    alignas(64) float highest[MAX_ROWS];

    explicit Look(const Tokens& queries) : rows(queries.rows()) {
        pack_rows(queries, query);
        std::fill(sums, sums + rows * CHANNELS, 0.0f);
        std::fill(shares, shares + rows, 0.0f);
        std::fill(highest, highest + rows, -std::numeric_limits<float>::infinity());
    }

    // Looks at one block of positions, `positioned` with the position encoding added; both 64 x 256.
    template <class P>
    void at(const P& products, const bf16* image, const bf16* positioned) {
        products.template multiply<false>(positioned, CHANNELS, BLOCK, CHANNELS, query, rows / TILE, scores, rows);
        for (int row = 0; row < rows; row += 16) {
            __m512 high = _mm512_loadu_ps(scores + row);
            for (int position = 1; position < BLOCK; ++position)
                high = _mm512_max_ps(high, _mm512_loadu_ps(scores + position * rows + row));
            raise(row, high);
            const __m512 base = _mm512_load_ps(highest + row);
            __m512 share = _mm512_load_ps(shares + row);
            for (int half = 0; half < BLOCK; half += 32) {
                __m512i part[16];
                for (int pair = 0; pair < 16; ++pair) {
                    const float* from = scores + (half + 2 * pair) * rows + row;
                    const __m512 even = exponential(_mm512_sub_ps(_mm512_loadu_ps(from), base));
                    const __m512 odd = exponential(_mm512_sub_ps(_mm512_loadu_ps(from + rows), base));
                    share = _mm512_add_ps(share, _mm512_add_ps(even, odd));
                    part[pair] = interleaved(even, odd);
                }
                transpose_16x16(part);
                for (int i = 0; i < 16; ++i) _mm512_storeu_si512(weights + (row + i) * BLOCK + half, part[i]);
            }
            _mm512_store_ps(shares + row, share);
        }
        pack_positions(image, values);
        products.template multiply<true>(weights, BLOCK, rows, BLOCK, values, CHANNELS / TILE, sums, CHANNELS);
    }

    // Writes the weighted means of the values, heads x tokens x channels, and the logarithms of the softmax's sums,
    // heads x tokens; a head's come `head_stride` tokens after those of the one before.
    void finish(int tokens, long head_stride, float* means, float* logsumexp) const {
        for (int row = 0; row < tokens * HEADS; ++row) {
            const long to = (row % HEADS) * head_stride + row / HEADS;
            const __m512 factor = _mm512_set1_ps(1.0f / shares[row]);
            for (int column = 0; column < CHANNELS; column += 16)
                _mm512_storeu_ps(means + to * CHANNELS + column,
                                 _mm512_mul_ps(factor, _mm512_load_ps(sums + row * CHANNELS + column)));
            logsumexp[to] = highest[row] + std::log(shares[row]);
        }
    }

   private:
    void raise(int row, __m512 high) {
        const __m512 before = _mm512_load_ps(highest + row);
        const __mmask16 beyond =
            _mm512_cmp_ps_mask(high, _mm512_add_ps(before, _mm512_set1_ps(HEADROOM)), _CMP_GT_OQ);
        if (!beyond) return;
        const __m512 after = _mm512_mask_mov_ps(before, beyond, high);
        alignas(64) float factors[16];
        // Where nothing was seen yet this is 0 times 0.
        _mm512_store_ps(factors, exponential(_mm512_sub_ps(before, after)));
        _mm512_store_ps(highest + row, after);
        _mm512_store_ps(shares + row, _mm512_mul_ps(_mm512_load_ps(shares + row), _mm512_load_ps(factors)));
        for (int i = 0; i < 16; ++i) {
            if (!(beyond >> i & 1)) continue;
            const __m512 factor = _mm512_set1_ps(factors[i]);
            float* sum = sums + (row + i) * CHANNELS;
            for (int column = 0; column < CHANNELS; column += 16)
                _mm512_store_ps(sum + column, _mm512_mul_ps(factor, _mm512_load_ps(sum + column)));
        }
    }
};

inline void add_position(const bf16* image, const bf16* position, bf16* positioned) {
    for (int i = 0; i < BLOCK * CHANNELS; i += 16)
        store_bf16(positioned + i, _mm512_add_ps(load_bf16(image + i), load_bf16(position + i)));
}

// ---------------------------------------------------------------------------------------------------------------------
// Attention of the image to the tokens

struct Update {
    const int rows;
    const float* norm_weight;
    const float* norm_bias;
    alignas(64) bf16 vectors[MAX_ROWS * CHANNELS];  // packed
    alignas(64) bf16 values[MAX_ROWS * CHANNELS];   // packed
    alignas(64) float offsets[MAX_ROWS];
    alignas(64) float scores[BLOCK * MAX_ROWS];
    alignas(64) bf16 shares[BLOCK * MAX_ROWS];
    alignas(64) float found[HALF * CHANNELS];

    Update(const Tokens& side_vectors, const float* side_offsets, const Tokens& side_values, const Norm& norm)
        : rows(side_vectors.rows()), norm_weight(norm.weight), norm_bias(norm.bias) {
        pack_rows(side_vectors, vectors);
        pack_matrix([&](int row) { return side_values.row(row); }, rows, CHANNELS, values);
        for (int row = 0; row < rows; ++row) {
            const int token = row / HEADS;
            const long from = (row % HEADS) * (side_vectors.head_stride / CHANNELS) + token;
            // What pads gets no share.
            offsets[row] = token < side_vectors.count ? side_offsets[from] : -1e30f;
        }
    }

    // Writes a block of the image after its attention and norm, with and without its position encoding.
    template <class P>
    void at(const P& products, const bf16* image, const bf16* position, bf16* positioned, bf16* updated) {
        add_position(image, position, positioned);
        products.template multiply<false>(positioned, CHANNELS, BLOCK, CHANNELS, vectors, rows / TILE, scores, rows);
        for (int at = 0; at < BLOCK; ++at) {
            fetch(image + (BLOCK + at) * CHANNELS);
            softmax_over_tokens(scores + at * rows, shares + at * rows);
        }
        for (int at = 0; at < BLOCK; ++at) {
            if (at % HALF == 0)
                products.template multiply<false>(shares + at * rows, rows, HALF, rows, values, CHANNELS / TILE, found,
                                                  CHANNELS);
            const long here = at * CHANNELS;
            fetch(position + BLOCK * CHANNELS + here);
            norm(image + here, found + at % HALF * CHANNELS, position + here, updated + here, positioned + here);
        }
    }

   private:
    void softmax_over_tokens(float* score, bf16* share) const {
        // A register holds two tokens: what belongs to one head is 8 lanes apart.
        __m512 high = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
        for (int row = 0; row < rows; row += 16) {
            const __m512 moved = _mm512_add_ps(_mm512_loadu_ps(score + row), _mm512_load_ps(offsets + row));
            _mm512_storeu_ps(score + row, moved);
            high = _mm512_max_ps(high, moved);
        }
        high = _mm512_max_ps(high, _mm512_shuffle_f32x4(high, high, 0x4e));
        __m512 sum = _mm512_setzero_ps();
        for (int row = 0; row < rows; row += 16) {
            const __m512 grown = exponential(_mm512_sub_ps(_mm512_loadu_ps(score + row), high));
            _mm512_storeu_ps(score + row, grown);
            sum = _mm512_add_ps(sum, grown);
        }
        sum = _mm512_add_ps(sum, _mm512_shuffle_f32x4(sum, sum, 0x4e));
        const __m512 factor = _mm512_div_ps(_mm512_set1_ps(1.0f), sum);
        for (int row = 0; row < rows; row += 16)
            store_bf16(share + row, _mm512_mul_ps(factor, _mm512_loadu_ps(score + row)));
    }

    void norm(const bf16* image, const float* added, const bf16* position, bf16* updated, bf16* positioned) const {
        __m512 value[16];
        for (int i = 0; i < 16; ++i)
            value[i] = _mm512_add_ps(load_bf16(image + 16 * i), _mm512_load_ps(added + 16 * i));
        normalise<CHANNELS>(value, NORM_EPSILON);
        for (int i = 0; i < 16; ++i) {
            const __m512 normed =
                _mm512_fmadd_ps(value[i], _mm512_loadu_ps(norm_weight + 16 * i), _mm512_loadu_ps(norm_bias + 16 * i));
            store_bf16(updated + 16 * i, normed);
            store_bf16(positioned + 16 * i, _mm512_add_ps(normed, load_bf16(position + 16 * i)));
        }
    }
};

// What belongs to the tokens of one prompt, out of what belongs to all.
Tokens tokens_of(const Exchange& exchange, const float* values, int prompt) {
    return {values + (long)prompt * exchange.count * CHANNELS, (long)exchange.rows() * CHANNELS, exchange.count};
}

void finish(const Look& looking, const Part& part, const Exchange& exchange) {
    const long rows = exchange.rows(), at = (long)part.number * HEADS * rows + (long)part.prompt * exchange.count;
    looking.finish(exchange.count, rows, exchange.means + at * CHANNELS, exchange.logsumexp + at);
}

template <int ISA>
void look_at(const Weights& weights, const bf16* image, const Part& part, const Exchange& exchange) {
    const Products<ISA> products;
    Look looking(tokens_of(exchange, exchange.query, part.prompt));
    alignas(64) bf16 positioned[BLOCK * CHANNELS];
    for (int first = part.first; first < part.first + part.positions; first += BLOCK) {
        const long here = (long)first * CHANNELS;
        add_position(image + here, weights.position + here, positioned);
        looking.at(products, image + here, positioned);
    }
    finish(looking, part, exchange);
}

template <int ISA>
void update_and_look_at(const Weights& weights, int layer, const bf16* image, const Part& part,
                        const Exchange& exchange, bf16* updated) {
    const Products<ISA> products;
    const long at = (long)part.prompt * exchange.count;
    Update update(tokens_of(exchange, exchange.vectors, part.prompt), exchange.offsets + at,
                  tokens_of(exchange, exchange.values, part.prompt), weights.layers[layer].image_norm);
    Look looking(tokens_of(exchange, exchange.query, part.prompt));
    alignas(64) bf16 positioned[BLOCK * CHANNELS];
    for (int first = part.first; first < part.first + part.positions; first += BLOCK) {
        const long here = (long)first * CHANNELS;
        update.at(products, image + here, weights.position + here, positioned, updated + here);
        looking.at(products, updated + here, positioned);
    }
    finish(looking, part, exchange);
}

// ---------------------------------------------------------------------------------------------------------------------
// Upscaling

template <int ISA>
void upscale_part(const Upscaling& upscaling, const bf16* image, const Part& part, const float* vectors, int masks,
                  float* logits) {
    const bf16* first_weight = upscaling.first.weight;
    const bf16* second_weight = upscaling.second.weight;
    const float *first_bias = upscaling.first.bias, *second_bias = upscaling.second.bias;
    const float *norm_weight = upscaling.norm.weight, *norm_bias = upscaling.norm.bias;
    const Products<ISA> products;
    // Sixteen columns: four masks for each of a position's four places in the second convolution.
    alignas(64) float blocks[4 * LAST * TILE] = {};
    for (int place = 0; place < 4; ++place)
        for (int mask = 0; mask < masks; ++mask)
            for (int channel = 0; channel < LAST; ++channel)
                blocks[(place * LAST + channel) * TILE + place * MASKS + mask] = vectors[mask * LAST + channel];
    alignas(64) bf16 packed[4 * LAST * TILE];
    pack_matrix([&](int row) { return blocks + row * TILE; }, 4 * LAST, TILE, packed);

    alignas(64) float wide[HALF * CHANNELS];
    alignas(64) bf16 middle[BLOCK * CHANNELS];
    alignas(64) float wider[BLOCK * 4 * LAST];
    alignas(64) bf16 last[BLOCK * 4 * LAST];
    alignas(64) float found[BLOCK * TILE];
    for (int first = part.first; first < part.first + part.positions; first += BLOCK) {
        // Each position is four now, of 64 channels.
        for (int at = 0; at < BLOCK * CHANNELS; at += MIDDLE) {
            const bf16* here = image + (long)first * CHANNELS + at;
            if (at % (HALF * CHANNELS) == 0)
                products.template multiply<false>(here, CHANNELS, HALF, CHANNELS, first_weight, CHANNELS / TILE, wide,
                                                  CHANNELS);
            if (at % CHANNELS == 0) fetch(here + BLOCK * CHANNELS);
            __m512 value[4];
            for (int i = 0; i < 4; ++i)
                value[i] = _mm512_add_ps(_mm512_load_ps(wide + at % (HALF * CHANNELS) + 16 * i), _mm512_loadu_ps(first_bias + 16 * i));
            normalise<MIDDLE>(value, MIDDLE_EPSILON);
            for (int i = 0; i < 4; ++i) {
                const __m512 normed = _mm512_fmadd_ps(value[i], _mm512_loadu_ps(norm_weight + 16 * i),
                                                      _mm512_loadu_ps(norm_bias + 16 * i));
                store_bf16(middle + at + 16 * i, gelu(normed));
            }
        }
        // In quarters: the four places of 16 positions each.
        for (int quarter = 0; quarter < 4; ++quarter) {
            products.template multiply<false>(middle + quarter * BLOCK * MIDDLE, MIDDLE, BLOCK, MIDDLE, second_weight,
                                              4 * LAST / TILE, wider, 4 * LAST);
            for (int at = 0; at < BLOCK; ++at)
                for (int i = 0; i < 4 * LAST; i += 16)
                    store_bf16(last + at * 4 * LAST + i, gelu(_mm512_add_ps(_mm512_load_ps(wider + at * 4 * LAST + i),
                                                                           _mm512_loadu_ps(second_bias + i))));
            products.template multiply<false>(last, 4 * LAST, BLOCK, 4 * LAST, packed, 1, found, TILE);
            for (int mask = 0; mask < masks; ++mask) {
                float* to = logits + ((long)mask * LOGITS + first / BLOCK * 4) * LOGITS;
                for (int at = 0; at < BLOCK; ++at) {
                    const int x = quarter * 16 + at / 4, a = at / 2 % 2, b = at % 2;
                    float* corner = to + 2 * a * LOGITS + 4 * x + 2 * b;
                    const float* from = found + at * TILE + mask;
                    corner[0] = from[0];
                    corner[1] = from[MASKS];
                    corner[LOGITS] = from[2 * MASKS];
                    corner[LOGITS + 1] = from[3 * MASKS];
                }
            }
        }
    }
}

}  // namespace

namespace samovar {

void look(int isa, const Weights& weights, const bf16* image, const Part& part, const Exchange& exchange) {
    (isa == AMX ? look_at<AMX> : look_at<AVX512>)(weights, image, part, exchange);
}

void update_and_look(int isa, const Weights& weights, int layer, const bf16* image, const Part& part,
                     const Exchange& exchange, bf16* updated) {
    (isa == AMX ? update_and_look_at<AMX> : update_and_look_at<AVX512>)(weights, layer, image, part, exchange, updated);
}

void upscale(int isa, const Weights& weights, const bf16* image, const Part& part, const float* vectors, int masks,
             float* logits) {
    (isa == AMX ? upscale_part<AMX> : upscale_part<AVX512>)(weights.upscaling, image, part, vectors, masks, logits);
}

}  // namespace samovar
